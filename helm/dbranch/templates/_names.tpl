{{- define "dbranch.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}{{ with .Values.image.digest }}@{{ . }}{{ end }}
{{- end }}

{{- define "dbranch.labels" -}}
app.kubernetes.io/name: dbranch
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: dbranch
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "dbranch.agentUser" -}}
system:serviceaccount:{{ .Values.nodesNamespace.name }}:dbranch-agent
{{- end }}

{{- /* Fail if the values are those of an older release (helm upgrade --reuse-values): its defaults then stand in place of
this chart's, and whole sections are missing. Each template includes this first: Helm renders them in no order. */}}
{{- define "dbranch.checkValues" -}}
{{- range $section := list "metrics" "postgres" }}
{{- if not (hasKey $.Values $section) }}
{{- fail (printf "the value %q of this release is missing, as with --reuse-values from an older one; nothing was changed; run helm upgrade with --reset-then-reuse-values" $section) }}
{{- end }}
{{- end }}
{{- end }}
