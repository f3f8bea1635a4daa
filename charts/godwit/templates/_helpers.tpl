{{/* Names, labels and the parts that every pod has. */}}

{{- define "godwit.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "godwit.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains (include "godwit.name" .) .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "godwit.name" .) | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "godwit.namespace" -}}
{{- default .Release.Namespace .Values.namespaceOverride -}}
{{- end -}}

{{- define "godwit.serviceAccount" -}}
{{- default (include "godwit.fullname" .) .Values.serviceAccount.name -}}
{{- end -}}

{{/* A component's labels for selecting; takes (list root component). */}}
{{- define "godwit.selectorLabels" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ include "godwit.name" $root }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{/* All labels of a component; takes (list root component). */}}
{{- define "godwit.labels" -}}
{{- $root := index . 0 -}}
{{ include "godwit.selectorLabels" . }}
app.kubernetes.io/part-of: godwit
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version }}
{{- with $root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* An image, of Godwit's registry unless it has its own; takes (list root image). */}}
{{- define "godwit.image" -}}
{{- $root := index . 0 -}}
{{- $image := index . 1 -}}
{{- $registry := coalesce $root.Values.global.imageRegistry $image.registry $root.Values.image.registry -}}
{{- $name := printf "%s/%s" $registry $image.repository -}}
{{- if $image.digest -}}
{{ $name }}@{{ $image.digest }}
{{- else -}}
{{ $name }}:{{ default $root.Chart.AppVersion $image.tag }}
{{- end -}}
{{- end -}}

{{/* The services: role, key in values, and ports. */}}
{{- define "godwit.components" -}}
- {role: api-gateway, key: gateway, port: 6443, portName: https, admin: 7143}
- {role: scheduler, key: scheduler, port: 7101, portName: grpc, admin: 8101}
- {role: migration-coordinator, key: coordinator, port: 7102, portName: grpc, admin: 8102}
- {role: maintenance-service, key: maintenance, port: 7103, portName: grpc, admin: 8103}
{{- end -}}

{{/* URLs of every scheduler, as a TOML array: agents and the gateway tell each of them. */}}
{{- define "godwit.schedulers" -}}
{{- $name := printf "%s-scheduler" (include "godwit.fullname" .) -}}
{{- $urls := list -}}
{{- range $i := until (int .Values.scheduler.replicas) -}}
{{- $urls = append $urls (printf "https://%s-%d.%s.%s.svc:7101" $name $i $name (include "godwit.namespace" $)) -}}
{{- end -}}
{{ toJson $urls }}
{{- end -}}

{{/* Names that a service is reached by; takes (list root role). */}}
{{- define "godwit.servedAs" -}}
{{- $root := index . 0 -}}
{{- $role := index . 1 -}}
{{- $name := printf "%s-%s" (include "godwit.fullname" $root) $role -}}
{{- $space := include "godwit.namespace" $root -}}
{{- $names := list $name (printf "%s.%s" $name $space) (printf "%s.%s.svc" $name $space) (printf "%s.%s.svc.cluster.local" $name $space) -}}
{{- if eq $role "scheduler" -}}
{{- $names = concat $names (list (printf "*.%s.%s.svc" $name $space)) $root.Values.scheduler.hostnames -}}
{{- end -}}
{{- if eq $role "api-gateway" -}}
{{- $names = concat $names (list "localhost") $root.Values.gateway.hostnames -}}
{{- end -}}
{{ join "," $names }}
{{- end -}}

{{/* Where the ledger is: secret, url, cloudNativePg, or own for the chart's Postgres. */}}
{{- define "godwit.ledger" -}}
{{- if .Values.database.existingSecret -}}secret
{{- else if .Values.database.url -}}url
{{- else if .Values.cloudNativePg.enabled -}}cloudNativePg
{{- else if .Values.postgres.enabled -}}own
{{- else -}}
{{- fail "No Postgres: set database.existingSecret, database.url or cloudNativePg.enabled, or postgres.enabled for trying." -}}
{{- end -}}
{{- end -}}

{{- define "godwit.databaseSecret" -}}
{{- $ledger := include "godwit.ledger" . -}}
{{- if eq $ledger "secret" -}}
{{ .Values.database.existingSecret }}
{{- else if eq $ledger "cloudNativePg" -}}
{{ include "godwit.fullname" . }}-ledger-app
{{- else -}}
{{ include "godwit.fullname" . }}-database
{{- end -}}
{{- end -}}

{{/* Key of a service's Postgres URL; takes (list root role). */}}
{{- define "godwit.databaseKey" -}}
{{- $root := index . 0 -}}
{{- $ledger := include "godwit.ledger" $root -}}
{{- if eq $ledger "secret" -}}
{{ index $root.Values.database.existingSecretKeys (index . 1) }}
{{- else if eq $ledger "cloudNativePg" -}}uri
{{- else -}}url
{{- end -}}
{{- end -}}

{{/* A pod's volume with the authority of Postgres' certificate, if there is one. */}}
{{- define "godwit.databaseVolume" -}}
{{- with .Values.database.caSecret -}}
- name: database
  secret:
    secretName: {{ . }}
    defaultMode: 288
    items:
      - {key: ca.crt, path: ca.crt}
{{- end -}}
{{- end -}}

{{/* Secrets with a file for each service, and for each host. */}}
{{- define "godwit.tlsSecret" -}}
{{- if eq .Values.tls.mode "selfMade" -}}
{{ include "godwit.fullname" . }}-tls
{{- else -}}
{{ .Values.tls.existingSecret }}
{{- end -}}
{{- end -}}

{{- define "godwit.agentTlsSecret" -}}
{{- if eq .Values.tls.mode "selfMade" -}}
{{ include "godwit.fullname" . }}-node-tls
{{- else -}}
{{ .Values.tls.existingAgentSecret }}
{{- end -}}
{{- end -}}

{{/* The authority of the gateway's certificate, as an APIService wants it. */}}
{{- define "godwit.caBundle" -}}
{{- $secret := lookup "v1" "Secret" (include "godwit.namespace" .) (include "godwit.tlsSecret" .) -}}
{{- if .Values.aggregation.caBundle -}}
{{ b64enc .Values.aggregation.caBundle }}
{{- else if $secret -}}
{{ index $secret.data "ca.crt" }}
{{- else -}}
{{- fail "aggregation needs the authority of the gateway's certificate: set aggregation.caBundle, or use certManager, or switch it on when the Secret with the certificates is there" -}}
{{- end -}}
{{- end -}}

{{/*
Rules of RBAC out of what Godwit's own roles say, `verbs of resources in groups`, for those groups
that are wanted; takes (list wanted said).
*/}}
{{- define "godwit.rules" -}}
{{- $wanted := index . 0 -}}
{{- $rules := list -}}
{{- range index . 1 -}}
{{- $said := regexSplit " (of|in) " . -1 -}}
{{- $verbs := index $said 0 | replace "read" "get list watch" | replace "write" "create delete deletecollection patch update" -}}
{{- /* kube-apiserver asks for the first word of a subresource, the gateway for all of it. */ -}}
{{- $resources := list -}}
{{- range index $said 1 | splitList " " -}}
{{- $resources = concat $resources (list (regexReplaceAll "^([^/]+/[^/]+)/.*$" . "${1}") .) -}}
{{- end -}}
{{- $groups := list -}}
{{- range index $said 2 | splitList " " -}}
{{- if hasKey $wanted . -}}{{- $groups = append $groups . -}}{{- end -}}
{{- end -}}
{{- if $groups -}}
{{- $rules = append $rules (dict "apiGroups" $groups "resources" (uniq $resources) "verbs" (splitList " " $verbs)) -}}
{{- end -}}
{{- end -}}
{{ toYaml $rules }}
{{- end -}}

{{/* A pod's volume with tls.crt, tls.key and ca.crt; takes (list root role). */}}
{{- define "godwit.tlsVolume" -}}
{{- $root := index . 0 -}}
{{- $role := index . 1 -}}
- name: tls
  secret:
    defaultMode: 288
    {{- if eq $root.Values.tls.mode "certManager" }}
    secretName: {{ include "godwit.fullname" $root }}-{{ $role }}-tls
    {{- else }}
    secretName: {{ include "godwit.tlsSecret" $root }}
    items:
      - {key: ca.crt, path: ca.crt}
      - {key: {{ $role }}.crt, path: tls.crt}
      - {key: {{ $role }}.key, path: tls.key}
    {{- end }}
{{- end -}}

{{/* Annotations of a workload or Service: common ones and its own; takes (list root own). */}}
{{- define "godwit.annotations" -}}
{{- $all := merge (dict) (default (dict) (index . 1)) (index . 0).Values.commonAnnotations -}}
{{- with $all -}}
annotations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Where a pod runs; takes its values. */}}
{{- define "godwit.placement" -}}
{{- $place := pick . "priorityClassName" "nodeSelector" "tolerations" "affinity" -}}
{{- range $key, $value := $place -}}
{{- if not $value -}}{{- $_ := unset $place $key -}}{{- end -}}
{{- end -}}
{{- with $place -}}
{{ toYaml . }}
{{- end -}}
{{- end -}}

{{/* Where a service listens; takes (list root port). */}}
{{- define "godwit.bind" -}}
{{- $address := (index . 0).Values.bindAddress -}}
{{ ternary (printf "[%s]" $address) $address (contains ":" $address) }}:{{ index . 1 }}
{{- end -}}

{{/* Port of the collector of traces, for network policies. */}}
{{- define "godwit.otlpPort" -}}
{{- $named := regexFind ":[0-9]+$" (urlParse .Values.telemetry.otlpEndpoint).host | trimPrefix ":" -}}
{{ coalesce .Values.networkPolicy.otlpPort $named 80 }}
{{- end -}}

{{/* Configuration that all services share, TOML; takes (list root adminPort). */}}
{{- define "godwit.commonConfig" -}}
{{- $root := index . 0 -}}
common.log = {{ $root.Values.log.format | toJson }}
common.log_filter = {{ $root.Values.log.filter | toJson }}
common.admin_bind = {{ include "godwit.bind" . | toJson }}
common.identity.ca = "/etc/godwit/tls/ca.crt"
{{- with $root.Values.telemetry.otlpEndpoint }}
common.otlp_endpoint = {{ . | toJson }}
common.otlp_protocol = {{ $root.Values.telemetry.otlpProtocol | toJson }}
{{- end }}
{{- end -}}
