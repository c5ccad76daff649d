{{- /* The limits as data of strings: `<limit>` and, of one namespace, `<namespace>.<limit>`. Values of a
release without limits have none (`--reuse-values`). */}}
{{- define "dbranch.limits" -}}
{{- $limits := .Values.limits | default dict }}
{{- range $name := list "projects" "branches" "snapshotsPerBranch" "snapshotsPerProject" "storageSize" "cpu" "memory" "ephemeralStorage" "proxyReplicas" }}
{{ $name }}: {{ include "dbranch.limitText" (get $limits $name) | quote }}
{{- end }}
{{- range $name := list "images" "nodeSelectors" "extendedResources" }}
{{- $given := get $limits $name }}
{{ $name }}: {{ kindIs "slice" $given | ternary (include "dbranch.limitText" $given) "*" | quote }}
{{- end }}
{{- range $namespace, $exceptions := $limits.namespaces }}
{{- range $name, $value := $exceptions }}
{{- if not (kindIs "invalid" $value) }}
{{ $namespace }}.{{ $name }}: {{ include "dbranch.limitText" $value | quote }}
{{- end }}
{{- end }}
{{- end }}
{{- /* What a pod gets that asks for nothing. */}}
{{- $defaults := (((.Values.postgres | default dict).defaultResources | default dict).limits | default dict) }}
{{- range $name, $resource := dict "cpu" "cpu" "memory" "memory" "ephemeralStorage" "ephemeral-storage" }}
postgres.defaultResources.limits.{{ $name }}: {{ include "dbranch.limitText" (get $defaults $resource) | quote }}
{{- end }}
{{- end }}

{{- define "dbranch.limitText" -}}
{{- if kindIs "slice" . }}{{ join " " . }}
{{- else if kindIs "invalid" . }}
{{- else if and (kindIs "float64" .) (eq (float64 (int64 .)) .) }}{{ int64 . }}
{{- else }}{{ . }}
{{- end }}
{{- end }}

{{- /* CEL: the limit of this name for the request's namespace; "" for none, of a list *. */}}
{{- define "dbranch.limit" -}}
{{- $none := has . (list "images" "nodeSelectors" "extendedResources") | ternary "*" "" -}}
variables.data[?(request.namespace + '.{{ . }}')].or(variables.data[?'{{ . }}']).orValue('{{ $none }}')
{{- end }}

{{- /* CEL: the end of a message: the limit, its value, and who can raise it. */}}
{{- define "dbranch.limitAdvice" -}}
'; ' + ((request.namespace + '.{{ . }}') in variables.data ? 'limits.namespaces.' + request.namespace + '.{{ . }}' :
'limits.{{ . }}') + ' of the dbranch chart allows ' + (variables.{{ . }} == '' ? 'nothing' : variables.{{ . }}) +
' in namespace ' + request.namespace + '; a cluster administrator can raise it'
{{- end }}

{{- /* CEL: whether the text `of` is allowed by the patterns in the variable `by`. What a pattern with a tag leaves open
holds no /: in `postgres:5000/x` postgres would be a registry. */}}
{{- define "dbranch.isAllowed" -}}
variables.{{ .by }}.split(' ').exists(p, p.endsWith('*') ?
({{ .of }}).startsWith(p.substring(0, p.size() - 1)) && (!p.substring(p.lastIndexOf('/') + 1).contains(':') ||
!({{ .of }}).substring(p.size() - 1).contains('/')) : ({{ .of }}) == p)
{{- end }}

{{- define "dbranch.isMore" -}}
quantity(string({{ .one }})).compareTo(quantity(string({{ .other }}))) > 0
{{- end }}

{{- /* The variables of what a project or branch says of its Postgres pods. `subject`: CEL, the object in words;
`inherits`: whether one that says nothing has the project's resources; `data`: the limits as JSON, which is CEL, too. */}}
{{- define "dbranch.limitVariables" -}}
- {name: data, expression: {{ .data | quote }}}
- {name: updates, expression: "request.operation == 'UPDATE'"}
- {name: subject, expression: {{ .subject | quote }}}
- {name: resources, expression: "object.spec.?postgres.resources.orValue({})"}
- {name: oldResources, expression: "variables.updates ? oldObject.spec.?postgres.resources.orValue({}) : {}"}
{{- range $section := list "requests" "limits" }}
- {name: {{ $section }}, expression: "variables.resources.?{{ $section }}.orValue({})"}
- {name: old{{ title $section }}, expression: "variables.oldResources.?{{ $section }}.orValue({})"}
{{- end }}
- name: says
  expression: {{ .inherits | ternary "variables.resources.size() > 0" "true" | quote }}
- name: said
  expression: {{ .inherits | ternary "variables.updates && variables.oldResources.size() > 0" "variables.updates" | quote }}
{{- range $limit, $name := dict "cpu" "cpu" "memory" "memory" "ephemeralStorage" "ephemeral-storage" }}
- name: {{ $limit }}
  expression: {{ include "dbranch.limit" $limit | quote }}
# The limit that the pod would have, "" for none: the chart's default is that of a resource of which nothing is said.
{{- range $variable, $old := dict "Limit" "" "OldLimit" "old" }}
- name: {{ $limit }}{{ $variable }}
  expression: >-
    '{{ $name }}' in variables.{{ $old }}{{ eq $old "" | ternary "limits" "Limits" }} ?
    string(variables.{{ $old }}{{ eq $old "" | ternary "limits" "Limits" }}['{{ $name }}']) :
    '{{ $name }}' in variables.{{ $old }}{{ eq $old "" | ternary "requests" "Requests" }} ? '' :
    variables.data[?'postgres.defaultResources.limits.{{ $limit }}'].orValue('')
{{- end }}
- name: {{ $limit }}Request
  expression: "'{{ $name }}' in variables.requests ? string(variables.requests['{{ $name }}']) : '0'"
- name: {{ $limit }}RequestExceeds
  expression: variables.{{ $limit }} != '' && {{ include "dbranch.isMore" (dict "one" (print "variables." $limit "Request") "other" (print "variables." $limit)) }}
- name: {{ $limit }}LimitExceeds
  expression: >-
    variables.{{ $limit }} != '' && variables.says && (variables.{{ $limit }}Limit == '' ||
    {{ include "dbranch.isMore" (dict "one" (print "variables." $limit "Limit") "other" (print "variables." $limit)) }})
{{- end }}
- name: extendedResources
  expression: {{ include "dbranch.limit" "extendedResources" | quote }}
{{- range $section := list "requests" "limits" }}
- name: {{ $section }}Excluded
  expression: >-
    variables.{{ $section }}.map(r, r).filter(r, !(r in ['cpu', 'memory', 'ephemeral-storage']) &&
    !{{ include "dbranch.isAllowed" (dict "by" "extendedResources" "of" "r") | replace "\n" " " }})
{{- end }}
{{- end }}

{{- define "dbranch.limitValidations" -}}
{{- range $limit, $name := dict "cpu" "cpu" "memory" "memory" "ephemeralStorage" "ephemeral-storage" }}
- expression: >-
    !variables.{{ $limit }}RequestExceeds || ('{{ $name }}' in variables.oldRequests &&
    !({{ include "dbranch.isMore" (dict "one" (print "variables." $limit "Request") "other" (printf "variables.oldRequests['%s']" $name)) }}))
  messageExpression: >-
    variables.subject + ' asks for spec.postgres.resources.requests.{{ $name }} ' + variables.{{ $limit }}Request +
    {{ include "dbranch.limitAdvice" $limit | replace "\n" " " }}
- expression: >-
    !variables.{{ $limit }}LimitExceeds || (variables.said && (variables.{{ $limit }}OldLimit == '' ||
    (variables.{{ $limit }}Limit != '' &&
    !({{ include "dbranch.isMore" (dict "one" (print "variables." $limit "Limit") "other" (print "variables." $limit "OldLimit")) }}))))
  messageExpression: >-
    variables.subject + (variables.{{ $limit }}Limit == '' ? ' sets no spec.postgres.resources.limits.{{ $name }}, which is needed' :
    ' has spec.postgres.resources.limits.{{ $name }} ' + variables.{{ $limit }}Limit) +
    {{ include "dbranch.limitAdvice" $limit | replace "\n" " " }}
{{- end }}
{{- range $section := list "requests" "limits" }}
{{- $old := printf "old%s" (title $section) }}
- expression: >-
    variables.{{ $section }}Excluded.all(r, r in variables.{{ $old }} &&
    !({{ include "dbranch.isMore" (dict "one" (printf "variables.%s[r]" $section) "other" (printf "variables.%s[r]" $old)) }}))
  messageExpression: >-
    variables.subject + ' asks for spec.postgres.resources.{{ $section }} of ' + variables.{{ $section }}Excluded.join(', ') +
    {{ include "dbranch.limitAdvice" "extendedResources" | replace "\n" " " }}
{{- end }}
{{- end }}

{{- /* CEL: the names of the limits that the pods' resources exceed. */}}
{{- define "dbranch.exceededResources" -}}
{{- range $limit := list "cpu" "memory" "ephemeralStorage" -}}
(variables.{{ $limit }}RequestExceeds || variables.{{ $limit }}LimitExceeds ? ['{{ $limit }}'] : []) +
{{ end -}}
(variables.requestsExcluded.size() + variables.limitsExcluded.size() > 0 ? ['extendedResources'] : [])
{{- end }}
