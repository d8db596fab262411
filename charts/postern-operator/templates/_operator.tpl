{{/* The mistakes that a schema could not explain: each ends the rendering with a sentence that says what to do. */}}
{{- define "operator.check" -}}
{{- $h := .Values.hub -}}
{{- with $h.connectUrl -}}
  {{- if not (regexMatch "^(tls|https|wss)://[^/@?#]+(/[^@?#]*)?$" .) -}}
    {{- fail (printf "hub.connectUrl %q is not the address of a hub: write tls://HOST or tls://HOST:PORT, or wss://HOST where only web traffic passes" .) -}}
  {{- end -}}
{{- end -}}
{{- if gt (len (compact (list $h.ca.pem $h.ca.secret $h.ca.configMap))) 1 -}}
  {{- fail "more than one of hub.ca.pem, hub.ca.secret and hub.ca.configMap is given" -}}
{{- end -}}
{{- if contains "PRIVATE KEY" $h.ca.pem -}}
  {{- fail "hub.ca.pem holds a private key: give the certificate alone, and take the key out of your values" -}}
{{- end -}}
{{- range $name, $value := dict "hub.ca.secret" $h.ca.secret "test.tokenSecret" .Values.test.tokenSecret -}}
  {{- if and $value (not (regexMatch "^[a-z0-9]([-a-z0-9.]{0,250}[a-z0-9])?$" $value)) -}}
    {{- fail (printf "%s is not the name of a Secret. A secret itself never stands among the values: kubectl create secret generic NAME --from-file=KEY=FILE, and give NAME" $name) -}}
  {{- end -}}
{{- end -}}
{{- if and .Values.test.tokenSecret (not $h.connectUrl) -}}
  {{- fail "test.tokenSecret is given, and hub.connectUrl is not: the test needs a hub" -}}
{{- end -}}
{{- end -}}

{{/* The name of what belongs to no namespace. */}}
{{- define "operator.clusterName" -}}
{{- printf "%s-%s" .Release.Namespace (include "postern.fullname" .) -}}
{{- end -}}

{{/* A map as KEY=VALUE, with commas between. */}}
{{- define "operator.pairs" -}}
{{- $all := list -}}
{{- range $key, $value := . -}}{{- $all = append $all (printf "%s=%v" $key $value) -}}{{- end -}}
{{- join "," $all -}}
{{- end -}}

{{/* Where the hub is, for the operator and for helm test. */}}
{{- define "operator.hubEnv" -}}
{{- $h := .Values.hub -}}
{{- with $h.connectUrl }}
- {name: POSTERN_CONNECT_URL, value: {{ . | quote }}}
{{- end }}
- {name: POSTERN_ORGANIZATION, value: {{ $h.organization | quote }}}
{{- if or $h.ca.pem $h.ca.secret $h.ca.configMap }}
- {name: POSTERN_CA_FILE, value: /etc/postern/ca/ca.crt}
{{- end }}
{{- with $h.ca.pin }}
- {name: POSTERN_CA_PIN, value: {{ . | quote }}}
{{- end }}
{{- end -}}

{{- define "operator.caVolume" -}}
{{- $h := .Values.hub -}}
{{- if $h.ca.pem }}
- name: ca
  configMap:
    name: {{ include "postern.fullname" . }}
    items:
      - {key: ca.crt, path: ca.crt}
{{- else if $h.ca.secret }}
- name: ca
  secret:
    secretName: {{ $h.ca.secret }}
    items:
      - {key: {{ $h.ca.key }}, path: ca.crt}
{{- else if $h.ca.configMap }}
- name: ca
  configMap:
    name: {{ $h.ca.configMap }}
    items:
      - {key: {{ $h.ca.key }}, path: ca.crt}
{{- end }}
{{- end -}}

{{/* The settings of the operator, which its cleanup takes too. */}}
{{- define "operator.env" -}}
{{- $v := .Values -}}
- name: POD_NAME
  valueFrom:
    fieldRef: {fieldPath: metadata.name}
- name: POSTERN_NAMESPACE
  valueFrom:
    fieldRef: {fieldPath: metadata.namespace}
{{- include "operator.hubEnv" . }}
{{- with $v.watchNamespaces }}
- {name: POSTERN_WATCH_NAMESPACE, value: {{ join "," . | quote }}}
{{- end }}
{{- if $v.compat.upbound.enabled }}
- {name: POSTERN_COMPAT_UPBOUND, value: "true"}
{{- end }}
- {name: POSTERN_PROXY_IMAGE, value: {{ include "postern.image" (list . $v.proxy.image) | quote }}}
- {name: POSTERN_PROXY_IMAGE_PULL_POLICY, value: {{ $v.proxy.image.pullPolicy }}}
{{- with $v.proxy.pullSecrets }}
- {name: POSTERN_PROXY_IMAGE_PULL_SECRET, value: {{ join "," . | quote }}}
{{- end }}
- {name: POSTERN_PROXY_REPLICAS, value: {{ $v.proxy.replicas | int | quote }}}
{{- with include "operator.pairs" (default (dict) $v.proxy.resources.requests) }}
- {name: POSTERN_PROXY_REQUESTS, value: {{ . | quote }}}
{{- end }}
{{- with include "operator.pairs" (default (dict) $v.proxy.resources.limits) }}
- {name: POSTERN_PROXY_LIMITS, value: {{ . | quote }}}
{{- end }}
{{- with include "operator.pairs" $v.proxy.nodeSelector }}
- {name: POSTERN_PROXY_NODE_SELECTOR, value: {{ . | quote }}}
{{- end }}
{{- with $v.proxy.priorityClassName }}
- {name: POSTERN_PROXY_PRIORITY_CLASS, value: {{ . | quote }}}
{{- end }}
{{- with $v.proxy.metricsNamespace }}
- {name: POSTERN_PROXY_METRICS_NAMESPACE, value: {{ . | quote }}}
{{- end }}
- {name: POSTERN_LOG_LEVEL, value: {{ $v.logLevel }}}
- {name: POSTERN_LOG_FORMAT, value: {{ $v.logFormat }}}
{{- end -}}
