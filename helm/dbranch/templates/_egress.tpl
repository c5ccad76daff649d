{{- /* True ("true", else "") if the IPv4 block .outer contains .inner. Sprig has no shift, so addresses are divided. */}}
{{- define "dbranch.ipv4Contains" -}}
{{- $values := dict }}
{{- range $name := list "outer" "inner" }}
{{- $block := splitList "/" (get $ $name) }}
{{- $number := 0 }}
{{- range splitList "." (index $block 0) }}
{{- $number = add (mul $number 256) (int64 .) }}
{{- end }}
{{- $_ := set $values $name (dict "number" $number "length" (int (index $block 1))) }}
{{- end }}
{{- $size := 1 }}
{{- range until (int (sub 32 $values.outer.length)) }}
{{- $size = mul $size 2 }}
{{- end }}
{{- if and (le $values.outer.length $values.inner.length) (eq (div $values.outer.number $size) (div $values.inner.number $size)) }}true{{ end }}
{{- end }}

{{- /* The rules of postgres.egress for a NetworkPolicy: a list in YAML. What is refused always is cut out of what is
allowed: link-local addresses, where clouds give a node's credentials to anybody who asks, and the API server. */}}
{{- define "dbranch.egressRules" -}}
{{- $egress := (.Values.postgres).egress | default dict }}
{{- $apiServer := $egress.apiServer | default list }}
{{- if and $egress.allow (not $apiServer) }}
{{- fail "postgres.egress.allow needs postgres.egress.apiServer: the API server's addresses, which are never allowed (kubectl get service,endpointslices -n default)" }}
{{- end }}
{{- $rules := list }}
{{- range $rule := $egress.allow }}
{{- $cidr := $rule.cidr }}
{{- $except := list }}
{{- if contains ":" $cidr }}
{{- range $refused := $apiServer }}
{{- if contains ":" $refused }}
{{- if eq $cidr "::/0" }}
{{- $except = append $except $refused }}
{{- else if or (lt (int (splitList "/" $cidr | last)) 16) (eq (splitList ":" $cidr | first | lower) (splitList ":" $refused | first | lower)) }}
{{- fail (printf "postgres.egress.allow: %s may contain the API server's %s; allow ::/0, of which it is left out, or a block that begins otherwise" $cidr $refused) }}
{{- end }}
{{- end }}
{{- end }}
{{- if eq $cidr "::/0" }}
{{- $except = prepend $except "fe80::/10" }}
{{- end }}
{{- else }}
{{- range $refused := prepend $apiServer "169.254.0.0/16" }}
{{- if not (contains ":" $refused) }}
{{- if include "dbranch.ipv4Contains" (dict "outer" $refused "inner" $cidr) }}
{{- fail (printf "postgres.egress.allow: %s is never allowed, since it lies in %s (link-local addresses, or the API server)" $cidr $refused) }}
{{- end }}
{{- if include "dbranch.ipv4Contains" (dict "outer" $cidr "inner" $refused) }}
{{- $except = append $except $refused }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- $block := dict "cidr" $cidr }}
{{- if $except }}
{{- $_ := set $block "except" (uniq $except) }}
{{- end }}
{{- $entry := dict "to" (list (dict "ipBlock" $block)) }}
{{- $ports := list }}
{{- range $rule.ports }}
{{- $ports = append $ports (dict "protocol" "TCP" "port" (int .)) }}
{{- end }}
{{- if $ports }}
{{- $_ := set $entry "ports" $ports }}
{{- end }}
{{- $rules = append $rules $entry }}
{{- end }}
{{- range $egress.namespaces }}
{{- $rules = append $rules (dict "to" (list (dict "namespaceSelector" (dict "matchLabels" (dict "kubernetes.io/metadata.name" .))))) }}
{{- end }}
{{- if $egress.dns }}
{{- $pods := dict "namespaceSelector" (dict "matchLabels" (dict "kubernetes.io/metadata.name" "kube-system")) "podSelector" (dict "matchLabels" (dict "k8s-app" "kube-dns")) }}
{{- $ports := list (dict "protocol" "UDP" "port" 53) (dict "protocol" "TCP" "port" 53) }}
{{- $rules = append $rules (dict "to" (list $pods) "ports" $ports) }}
{{- end }}
{{- toYaml $rules }}
{{- end }}
