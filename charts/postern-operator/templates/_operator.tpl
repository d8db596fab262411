{{/* The mistakes that a schema could not explain: each ends the rendering with a sentence that says what to do. */}}
{{- define "operator.check" -}}
{{- include "operator.checkIdentity" . -}}
{{- $h := .Values.hub -}}
{{- with $h.connectUrl -}}
  {{- if not (regexMatch "^(tls|https|wss)://[^/@?#]+(/[^@?#]*)?$" .) -}}
    {{- fail (printf "hub.connectUrl %q is not the address of a hub: write tls://HOST or tls://HOST:PORT, or wss://HOST where only web traffic passes" .) -}}
  {{- end -}}
{{- end -}}
{{- with $h.connectUrl -}}{{- include "postern.checkPort" (list "hub.connectUrl" .) -}}{{- end -}}
{{- with $h.organization -}}
  {{- if not (regexMatch "^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$" .) -}}
    {{- fail (printf "hub.organization %q is not a name: it has 1 to 63 characters of a-z, 0-9 and '-', with none of '-' at either end" .) -}}
  {{- end -}}
{{- end -}}
{{- if gt (len (compact (list $h.ca.pem $h.ca.secret $h.ca.configMap))) 1 -}}
  {{- fail "more than one of hub.ca.pem, hub.ca.secret and hub.ca.configMap is given" -}}
{{- end -}}
{{- if contains "PRIVATE KEY" $h.ca.pem -}}
  {{- fail "hub.ca.pem holds a private key: give the certificate alone, and take the key out of your values" -}}
{{- end -}}
{{- if ne (empty $h.proxy.service) (empty $h.proxy.credentialsSecret) -}}
  {{- fail "hub.proxy.service and hub.proxy.credentialsSecret belong together: give both or neither" -}}
{{- end -}}
{{- if and $h.proxy.service (not $h.connectUrl) -}}
  {{- fail "hub.proxy.service is given, and hub.connectUrl is not: name the hub whose proxy that is" -}}
{{- end -}}
{{- if and $h.httpProxy.url $h.httpProxy.secret -}}
  {{- fail "hub.httpProxy.url and hub.httpProxy.secret are both given" -}}
{{- end -}}
{{- if contains "@" $h.httpProxy.url -}}
  {{- fail "hub.httpProxy.url holds a user or password: put the URL into a Secret and name it with hub.httpProxy.secret" -}}
{{- end -}}
{{- if and $h.httpProxy.url (not (regexMatch "^https?://[^/@?#]+/?$" $h.httpProxy.url)) -}}
  {{- fail (printf "hub.httpProxy.url %q is not the address of an HTTP proxy: write http://HOST:PORT" $h.httpProxy.url) -}}
{{- end -}}
{{- range $name, $value := dict "hub.httpProxy.secret" $h.httpProxy.secret "hub.ca.secret" $h.ca.secret "identity.tokenSecret" .Values.identity.tokenSecret "test.tokenSecret" .Values.test.tokenSecret -}}
  {{- if and $value (not (regexMatch "^[a-z0-9]([-a-z0-9.]{0,250}[a-z0-9])?$" $value)) -}}
    {{- fail (printf "%s is not the name of a Secret. A secret itself never stands among the values: kubectl create secret generic NAME --from-file=KEY=FILE, and give NAME" $name) -}}
  {{- end -}}
{{- end -}}
{{- if and .Values.test.tokenSecret (not $h.connectUrl) -}}
  {{- fail "test.tokenSecret is given, and hub.connectUrl is not: the test needs a hub" -}}
{{- end -}}
{{- end -}}

{{- define "operator.checkIdentity" -}}
{{- $i := .Values.identity -}}
{{- if $i.controlPlane -}}
  {{- if not (or $i.url .Values.hub.connectUrl) -}}
    {{- fail "identity.url is not set, and neither is hub.connectUrl: somebody has to make the identity tokens" -}}
  {{- end -}}
  {{- if eq (empty $i.tokenSecret) (empty $i.serviceAccountAudience) -}}
    {{- fail "identity.controlPlane is given: give identity.tokenSecret, a Secret with the token of a robot that may speak for it, or identity.serviceAccountAudience, and not both" -}}
  {{- end -}}
{{- else if or $i.scope $i.url $i.tokenSecret -}}
  {{- fail "identity has settings, and identity.controlPlane is not set: name the control plane that this cluster is" -}}
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
{{- with $h.httpProxy.url }}
- {name: AGENT_PROXY, value: {{ . | quote }}}
{{- end }}
{{- with $h.httpProxy.secret }}
- name: AGENT_PROXY
  valueFrom:
    secretKeyRef: {name: {{ . }}, key: {{ $h.httpProxy.secretKey }}}
{{- end }}
{{- end -}}

{{/* Port, and network if it is an address, of the HTTP proxy on the way to the hub. */}}
{{- define "operator.httpProxyPort" -}}
{{- $h := .Values.hub.httpProxy -}}
{{- if $h.secret -}}
{{ $h.port | int }}
{{- else -}}
{{- default (ternary "443" "80" (hasPrefix "https:" $h.url)) (regexFind ":[0-9]+$" (urlParse $h.url).host | trimPrefix ":") -}}
{{- end -}}
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
{{- with $v.hub.proxy.service }}
- {name: POSTERN_HUB_PROXY_SERVICE, value: {{ . | quote }}}
- {name: POSTERN_HUB_PROXY_CREDENTIALS_SECRET, value: {{ $v.hub.proxy.credentialsSecret | quote }}}
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
{{- with $v.proxy.tolerations }}
- {name: POSTERN_PROXY_TOLERATION, value: {{ join "," . | quote }}}
{{- end }}
{{- with $v.hub.httpProxy.url }}
- {name: POSTERN_PROXY_HTTP_PROXY, value: {{ . | quote }}}
{{- end }}
{{- with $v.hub.httpProxy.secret }}
- {name: POSTERN_PROXY_HTTP_PROXY_SECRET, value: {{ printf "%s/%s" . $v.hub.httpProxy.secretKey | quote }}}
- {name: POSTERN_PROXY_HTTP_PROXY_PORT, value: {{ $v.hub.httpProxy.port | int | quote }}}
{{- end }}
{{- with $v.proxy.priorityClassName }}
- {name: POSTERN_PROXY_PRIORITY_CLASS, value: {{ . | quote }}}
{{- end }}
{{- with $v.proxy.metricsNamespace }}
- {name: POSTERN_PROXY_METRICS_NAMESPACE, value: {{ . | quote }}}
{{- end }}
{{- if $v.webhook.enabled }}
- {name: POSTERN_WEBHOOK, value: ":{{ $v.webhook.port | int }}"}
- {name: POSTERN_WEBHOOK_CONFIGURATION, value: {{ include "operator.clusterName" . }}}
- {name: POSTERN_WEBHOOK_SERVICE, value: {{ include "postern.fullname" . }}-webhook}
- {name: POSTERN_WEBHOOK_SECRET, value: {{ include "postern.fullname" . }}-webhook}
{{- with $v.webhook.excludedNamespaces }}
- {name: POSTERN_EXCLUDE_NAMESPACE, value: {{ join "," . | quote }}}
{{- end }}
{{- with $v.webhook.podNamespaces }}
- {name: POSTERN_POD_NAMESPACE, value: {{ join "," . | quote }}}
{{- end }}
{{- with $v.webhook.noProxy }}
- {name: POSTERN_NO_PROXY, value: {{ join "," . | quote }}}
{{- end }}
{{- if $v.webhook.certManager.enabled }}
- {name: POSTERN_WEBHOOK_CERT_MANAGER, value: "true"}
{{- end }}
{{- end }}
- {name: POSTERN_LOG_LEVEL, value: {{ $v.logLevel }}}
- {name: POSTERN_LOG_FORMAT, value: {{ $v.logFormat }}}
{{- end -}}

{{/* What the operator needs for identity tokens: variables, mounts and volumes; nothing without a control plane. */}}
{{- define "operator.identityEnv" -}}
{{- $i := .Values.identity -}}
- {name: POSTERN_IDENTITY_CONTROL_PLANE, value: {{ $i.controlPlane | quote }}}
- {name: POSTERN_IDENTITY_TOKEN_FILE, value: /etc/postern/identity/token}
- {name: POSTERN_IDENTITY_NAMESPACE, value: {{ join "," $i.namespaces | quote }}}
{{- with $i.scope }}
- {name: POSTERN_IDENTITY_SCOPE, value: {{ . | quote }}}
{{- end }}
{{- with $i.url }}
- {name: POSTERN_IDENTITY_URL, value: {{ . | quote }}}
{{- end }}
{{- if $i.caConfigMap }}
- {name: POSTERN_IDENTITY_CA_FILE, value: /etc/postern/identity-ca/ca.crt}
{{- end }}
{{- with $i.caPin }}
- {name: POSTERN_IDENTITY_CA_PIN, value: {{ . | quote }}}
{{- end }}
{{- with $i.organization }}
- {name: POSTERN_IDENTITY_ORGANIZATION, value: {{ . | quote }}}
{{- end }}
{{- with $i.audiences }}
- {name: POSTERN_IDENTITY_AUDIENCE, value: {{ join "," . | quote }}}
{{- end }}
{{- end -}}

{{- define "operator.identityMounts" -}}
{{- if .Values.identity.controlPlane }}
- {name: identity, mountPath: /etc/postern/identity, readOnly: true}
{{- if .Values.identity.caConfigMap }}
- {name: identity-ca, mountPath: /etc/postern/identity-ca, readOnly: true}
{{- end }}
{{- end }}
{{- end -}}

{{- define "operator.identityVolumes" -}}
{{- $i := .Values.identity -}}
{{- if $i.controlPlane }}
- name: identity
  {{- if $i.tokenSecret }}
  secret:
    secretName: {{ $i.tokenSecret }}
    defaultMode: 288 # 0440
    items:
      - {key: {{ $i.tokenSecretKey }}, path: token}
  {{- else }}
  projected:
    sources:
      - serviceAccountToken:
          path: token
          audience: {{ $i.serviceAccountAudience | quote }}
          expirationSeconds: 3600
  {{- end }}
{{- if $i.caConfigMap }}
- name: identity-ca
  configMap:
    name: {{ $i.caConfigMap }}
    items:
      - {key: {{ $i.caKey }}, path: ca.crt}
{{- end }}
{{- end }}
{{- end -}}
