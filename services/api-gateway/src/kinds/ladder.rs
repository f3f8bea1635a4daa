//! Ladders as people write them, in an annotation of a machine and in a maintenance: what makes no
//! sense is refused with the field's path.

use std::time::Duration;

use godwit_apimachinery::Cause;
use godwit_model::maintenance::{Ladder, LadderProblem, Method, Rung, unknown};
use serde_json::Value;

use super::plain_cause;

/// Annotation of an instance, or of a virtual machine's template, with the machine's own ladder.
const ANNOTATION: &str = "godwit.io/evacuation-ladder";

/// What is wrong with the ladder of `metadata`, which stands beside the spec at `path`.
pub(super) fn annotation_cause(path: &str, metadata: &Value) -> Option<Cause> {
    let text = metadata["annotations"][ANNOTATION].as_str()?;
    let problem = Ladder::parse(text).err()?;
    let path = path.strip_suffix("spec").unwrap_or_default();
    let field = format!("{path}metadata.annotations[{ANNOTATION}]");
    let why = format!("{field}: {problem}");
    Some(plain_cause(&field, why))
}

/// What is wrong with the ladder of a maintenance; nothing where there is none.
pub(super) fn list_cause(rungs: &Value) -> Option<Cause> {
    let rungs = rungs.as_array()?;
    let read: Result<Vec<Rung>, LadderProblem> = rungs.iter().enumerate().map(rung).collect();
    let problem = read.and_then(Ladder::new).err()?;
    let (field, value) = match (rungs.get(problem.at), problem.time) {
        (None, _) => ("spec.ladder".to_owned(), &Value::Null),
        (Some(rung), true) => {
            let field = format!("spec.ladder[{}].forSeconds", problem.at);
            (field, &rung["forSeconds"])
        }
        (Some(rung), false) => {
            let field = format!("spec.ladder[{}].method", problem.at);
            (field, &rung["method"])
        }
    };
    Some(Cause::invalid(&field, value, &problem.message))
}

fn rung((at, rung): (usize, &Value)) -> Result<Rung, LadderProblem> {
    let name = rung["method"].as_str().unwrap_or_default();
    // Less than nothing is refused as nothing is.
    let given = Some(&rung["forSeconds"]).filter(|given| !given.is_null());
    let lasts = given.map(|given| Duration::from_secs(given.as_u64().unwrap_or(0)));
    Ok(Rung {
        method: Method::from_name(name).ok_or_else(|| unknown(at, name))?,
        lasts,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_bad_annotation_is_refused_where_it_stands() {
        let metadata = |text: &str| json!({"annotations": {ANNOTATION: text}});
        assert_eq!(annotation_cause("spec", &metadata("Live=10m,Pause")), None);
        assert_eq!(annotation_cause("spec", &json!({})), None);
        for (path, field) in [
            ("spec", "metadata.annotations[godwit.io/evacuation-ladder]"),
            (
                "spec.template.spec",
                "spec.template.metadata.annotations[godwit.io/evacuation-ladder]",
            ),
        ] {
            let cause = annotation_cause(path, &metadata("Live,Jump")).unwrap();
            assert_eq!(cause.field, field);
            assert!(
                cause.message.contains("rung 2: \"Jump\" is none of"),
                "{}",
                cause.message
            );
        }
    }

    #[test]
    fn a_bad_ladder_of_a_maintenance_is_refused_by_its_rung() {
        let good = json!([{"method": "Live", "forSeconds": 600}, {"method": "Restart"}]);
        assert_eq!(list_cause(&good), None);
        assert_eq!(list_cause(&Value::Null), None);
        for (rungs, field) in [
            (json!([]), "spec.ladder"),
            (json!([{"method": "Jump"}]), "spec.ladder[0].method"),
            (
                json!([{"method": "Pause"}, {"method": "Live"}]),
                "spec.ladder[1].method",
            ),
            (
                json!([{"method": "Live", "forSeconds": -1}, {"method": "Block"}]),
                "spec.ladder[0].forSeconds",
            ),
            (
                json!([{"method": "Live", "forSeconds": 5}]),
                "spec.ladder[0].forSeconds",
            ),
        ] {
            let cause = list_cause(&rungs).unwrap();
            assert_eq!(cause.field, field, "{rungs}");
        }
    }
}
