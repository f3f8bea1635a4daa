//! Rules about nodes and neighbours: what can't be honoured is refused in Kubernetes' words.

use super::FieldProblem;
use super::problems::Problems;
use crate::affinity::{
    LabelSelector, NodeTerm, Operator, PodAffinity, PodTerm, Requirement, TopologySpread,
};
use crate::vmi::VmiSpec;

/// The only field of nodes that can be asked about.
const NAME_FIELD: &str = "metadata.name";

pub(super) fn check(spec: &VmiSpec, problems: &mut Problems) {
    let affinity = &spec.affinity;
    problems.rest("affinity", &affinity.rest);
    problems.rest("affinity.nodeAffinity", &affinity.node_affinity.rest);
    nodes(spec, problems);
    for (name, rules) in [
        ("podAffinity", &affinity.pod_affinity),
        ("podAntiAffinity", &affinity.pod_anti_affinity),
    ] {
        neighbours(&format!("affinity.{name}"), rules, problems);
    }
    for (at, rule) in spec.topology_spread_constraints.iter().enumerate() {
        spread(&format!("topologySpreadConstraints[{at}]"), rule, problems);
    }
}

fn nodes(spec: &VmiSpec, problems: &mut Problems) {
    let rules = &spec.affinity.node_affinity;
    let required = "affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution";
    if let Some(selector) = &rules.required_during_scheduling_ignored_during_execution {
        let path = format!("{required}.nodeSelectorTerms");
        if selector.node_selector_terms.is_empty() {
            problems.add(&path, "must have at least one node selector term");
        }
        for (at, term) in selector.node_selector_terms.iter().enumerate() {
            node_term(&format!("{path}[{at}]"), term, problems);
        }
    }
    let preferred = &rules.preferred_during_scheduling_ignored_during_execution;
    for (at, one) in preferred.iter().enumerate() {
        let path =
            format!("affinity.nodeAffinity.preferredDuringSchedulingIgnoredDuringExecution[{at}]");
        weight(&path, one.weight, problems);
        node_term(&format!("{path}.preference"), &one.preference, problems);
    }
}

fn node_term(path: &str, term: &NodeTerm, problems: &mut Problems) {
    for (at, one) in term.match_expressions.iter().enumerate() {
        requirement(&format!("{path}.matchExpressions[{at}]"), one, problems);
    }
    for (at, one) in term.match_fields.iter().enumerate() {
        let path = format!("{path}.matchFields[{at}]");
        if one.key != NAME_FIELD {
            problems.add(format!("{path}.key"), "not a valid field selector key");
        }
        let is_in = matches!(one.operator, Operator::In | Operator::NotIn);
        if !is_in {
            problems.add(format!("{path}.operator"), "not a valid selector operator");
        }
        if is_in && one.values.len() != 1 {
            let text = "must be only one value when `operator` is 'In' or 'NotIn' for node field \
                        selector";
            problems.add(format!("{path}.values"), text);
        }
    }
}

fn neighbours(path: &str, rules: &PodAffinity, problems: &mut Problems) {
    problems.rest(path, &rules.rest);
    let required = &rules.required_during_scheduling_ignored_during_execution;
    for (at, term) in required.iter().enumerate() {
        let path = format!("{path}.requiredDuringSchedulingIgnoredDuringExecution[{at}]");
        pod_term(&path, term, problems);
    }
    let preferred = &rules.preferred_during_scheduling_ignored_during_execution;
    for (at, one) in preferred.iter().enumerate() {
        let path = format!("{path}.preferredDuringSchedulingIgnoredDuringExecution[{at}]");
        weight(&path, one.weight, problems);
        let term = &one.pod_affinity_term;
        pod_term(&format!("{path}.podAffinityTerm"), term, problems);
    }
}

fn pod_term(path: &str, term: &PodTerm, problems: &mut Problems) {
    problems.rest(path, &term.rest);
    topology_key(path, &term.topology_key, problems);
    if let Some(selector) = &term.label_selector {
        label_selector(&format!("{path}.labelSelector"), selector, problems);
    }
    let spaces = term.namespace_selector.as_ref();
    if spaces.is_some_and(|selector| *selector != LabelSelector::default()) {
        let text = "only the empty selector, which means all namespaces, is supported";
        problems.add(format!("{path}.namespaceSelector"), text);
    }
}

fn spread(path: &str, rule: &TopologySpread, problems: &mut Problems) {
    problems.rest(path, &rule.rest);
    topology_key(path, &rule.topology_key, problems);
    if rule.max_skew < 1 {
        problems.add(format!("{path}.maxSkew"), "must be greater than zero");
    }
    let strict = match rule.when_unsatisfiable.as_str() {
        "DoNotSchedule" => true,
        "ScheduleAnyway" => false,
        _ => {
            let text = "supported values: \"DoNotSchedule\", \"ScheduleAnyway\"";
            problems.add(format!("{path}.whenUnsatisfiable"), text);
            true
        }
    };
    if let Some(domains) = rule.min_domains {
        let path = format!("{path}.minDomains");
        if domains < 1 {
            problems.add(&path, "must be greater than zero");
        }
        if !strict {
            let text = "can only use minDomains if whenUnsatisfiable=DoNotSchedule";
            problems.add(&path, text);
        }
    }
    if let Some(selector) = &rule.label_selector {
        label_selector(&format!("{path}.labelSelector"), selector, problems);
    }
    let (affinity, taints) = (&rule.node_affinity_policy, &rule.node_taints_policy);
    let path_of = |field: &str| format!("{path}.{field}");
    problems.only(&path_of("nodeAffinityPolicy"), affinity.as_deref(), "Honor");
    problems.only(&path_of("nodeTaintsPolicy"), taints.as_deref(), "Ignore");
}

fn topology_key(path: &str, key: &str, problems: &mut Problems) {
    if key.is_empty() {
        problems.add(format!("{path}.topologyKey"), "can not be empty");
    }
}

fn weight(path: &str, weight: i32, problems: &mut Problems) {
    if !(1..=100).contains(&weight) {
        problems.add(format!("{path}.weight"), "must be in the range 1-100");
    }
}

/// What makes no sense in a selector of labels that stands at `path`.
pub fn label_selector_problems(path: &str, selector: &LabelSelector) -> Vec<FieldProblem> {
    let mut problems = Problems::default();
    label_selector(path, selector, &mut problems);
    problems.0
}

fn label_selector(path: &str, selector: &LabelSelector, problems: &mut Problems) {
    for (at, one) in selector.match_expressions.iter().enumerate() {
        let path = format!("{path}.matchExpressions[{at}]");
        if matches!(one.operator, Operator::Gt | Operator::Lt) {
            problems.add(format!("{path}.operator"), "not a valid selector operator");
        } else {
            requirement(&path, one, problems);
        }
    }
}

fn requirement(path: &str, one: &Requirement, problems: &mut Problems) {
    if one.key.is_empty() {
        problems.add(format!("{path}.key"), "name part must be non-empty");
    }
    let wrong = match one.operator {
        Operator::In | Operator::NotIn if one.values.is_empty() => {
            "must be specified when `operator` is 'In' or 'NotIn'"
        }
        Operator::Exists | Operator::DoesNotExist if !one.values.is_empty() => {
            "may not be specified when `operator` is 'Exists' or 'DoesNotExist'"
        }
        Operator::Gt | Operator::Lt if one.values.len() != 1 => {
            "must be specified single value when `operator` is 'Lt' or 'Gt'"
        }
        Operator::Gt | Operator::Lt if one.values[0].parse::<i64>().is_err() => {
            "must be an integer when `operator` is 'Lt' or 'Gt'"
        }
        Operator::In
        | Operator::NotIn
        | Operator::Exists
        | Operator::DoesNotExist
        | Operator::Gt
        | Operator::Lt => return,
    };
    problems.add(format!("{path}.values"), wrong);
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn paths(spec: Value) -> Vec<String> {
        let spec: VmiSpec = serde_json::from_value(spec).expect("the schema's types");
        let mut problems = Problems::default();
        check(&spec, &mut problems);
        problems.0.into_iter().map(|problem| problem.path).collect()
    }

    fn near(term: &Value) -> Value {
        json!({"affinity": {"podAntiAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": [term],
        }}})
    }

    #[test]
    fn rules_that_can_be_honoured_pass() {
        let term = json!({
            "labelSelector": {"matchLabels": {"app": "db"}}, "topologyKey": "zone",
            "namespaceSelector": {},
        });
        assert_eq!(paths(near(&term)), Vec::<String>::new());
        let spread = json!({"topologySpreadConstraints": [{
            "maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule",
            "minDomains": 2, "nodeAffinityPolicy": "Honor",
        }]});
        assert_eq!(paths(spread), Vec::<String>::new());
    }

    #[test]
    fn what_makes_no_sense_is_named_by_its_path() {
        let required = "affinity.podAntiAffinity.requiredDuringSchedulingIgnoredDuringExecution[0]";
        let term = json!({
            "labelSelector": {"matchExpressions": [{"key": "app", "operator": "Gt"}]},
            "namespaceSelector": {"matchLabels": {"a": "b"}}, "matchLabelKeys": ["x"],
        });
        let fields = [
            "matchLabelKeys",
            "topologyKey",
            "labelSelector.matchExpressions[0].operator",
            "namespaceSelector",
        ];
        assert_eq!(
            paths(near(&term)),
            fields.map(|field| format!("{required}.{field}"))
        );
        let nodes = json!({"affinity": {"nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{
                "matchExpressions": [{"key": "a", "operator": "In"}],
                "matchFields": [{"key": "spec.x", "operator": "In", "values": ["a"]}],
            }]},
            "preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 101}],
        }}});
        let term = "affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution\
                    .nodeSelectorTerms[0]";
        assert_eq!(
            paths(nodes),
            [
                format!("{term}.matchExpressions[0].values"),
                format!("{term}.matchFields[0].key"),
                "affinity.nodeAffinity.preferredDuringSchedulingIgnoredDuringExecution[0].weight"
                    .to_owned(),
            ]
        );
    }
}
