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

{{/* An image; takes (list root image). */}}
{{- define "godwit.image" -}}
{{- $root := index . 0 -}}
{{- $image := index . 1 -}}
{{- $name := printf "%s/%s" $root.Values.image.registry $image.repository -}}
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
{{- $urls = append $urls (printf "https://%s-%d.%s.%s.svc:7101" $name $i $name $.Release.Namespace) -}}
{{- end -}}
{{ toJson $urls }}
{{- end -}}

{{/* Names that a service is reached by; takes (list root role). */}}
{{- define "godwit.servedAs" -}}
{{- $root := index . 0 -}}
{{- $role := index . 1 -}}
{{- $name := printf "%s-%s" (include "godwit.fullname" $root) $role -}}
{{- $space := $root.Release.Namespace -}}
{{- $names := list $name (printf "%s.%s" $name $space) (printf "%s.%s.svc" $name $space) (printf "%s.%s.svc.cluster.local" $name $space) -}}
{{- if eq $role "scheduler" -}}
{{- $names = append $names (printf "*.%s.%s.svc" $name $space) -}}
{{- end -}}
{{- if eq $role "api-gateway" -}}
{{- $names = concat $names (list "localhost") $root.Values.gateway.hostnames -}}
{{- end -}}
{{ join "," $names }}
{{- end -}}

{{/* Whether the chart brings Postgres. */}}
{{- define "godwit.ownPostgres" -}}
{{- if and .Values.postgres.enabled (not .Values.database.existingSecret) (not .Values.database.url) -}}yes{{- end -}}
{{- end -}}

{{- define "godwit.databaseSecret" -}}
{{- if .Values.database.existingSecret -}}
{{ .Values.database.existingSecret }}
{{- else if or .Values.database.url (include "godwit.ownPostgres" .) -}}
{{ include "godwit.fullname" . }}-database
{{- else -}}
{{- fail "No Postgres: set database.existingSecret or database.url, or postgres.enabled for trying." -}}
{{- end -}}
{{- end -}}

{{/* A pod's volume with tls.crt, tls.key and ca.crt; takes (list root role). */}}
{{- define "godwit.tlsVolume" -}}
{{- $root := index . 0 -}}
{{- $role := index . 1 -}}
- name: tls
  secret:
    defaultMode: 0440
    {{- if eq $root.Values.tls.mode "certManager" }}
    secretName: {{ include "godwit.fullname" $root }}-{{ $role }}-tls
    {{- else }}
    secretName: {{ required "tls.existingSecret names the Secret with the certificates" $root.Values.tls.existingSecret }}
    items:
      - {key: ca.crt, path: ca.crt}
      - {key: {{ $role }}.crt, path: tls.crt}
      - {key: {{ $role }}.key, path: tls.key}
    {{- end }}
{{- end -}}

{{/* What the Pod Security Standard "restricted" wants of a container. */}}
{{- define "godwit.restricted" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{/* What it wants of a pod. */}}
{{- define "godwit.restrictedPod" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{/* Configuration that all services share, TOML; takes (list root adminPort). */}}
{{- define "godwit.commonConfig" -}}
{{- $root := index . 0 -}}
common.log = {{ $root.Values.log.format | toJson }}
common.log_filter = {{ $root.Values.log.filter | toJson }}
common.admin_bind = "0.0.0.0:{{ index . 1 }}"
common.identity.ca = "/etc/godwit/tls/ca.crt"
{{- with $root.Values.telemetry.otlpEndpoint }}
common.otlp_endpoint = {{ . | toJson }}
{{- end }}
{{- end -}}
