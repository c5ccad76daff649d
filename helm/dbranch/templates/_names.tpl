{{- define "dbranch.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
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
