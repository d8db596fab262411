{{/* The mistakes that a schema could not explain: each ends the rendering with a sentence that says what to do. */}}
{{- define "hub.check" -}}
{{- $v := .Values -}}
{{- if gt (int $v.replicas) 1 -}}
  {{- fail (printf "replicas is %d, and hubs do not form clusters yet: two would be two hubs that know nothing of each other. Give 1; a bigger machine carries more" (int $v.replicas)) -}}
{{- end -}}
{{- if and $v.tls.secret $v.tls.certManager.enabled -}}
  {{- fail "tls.secret and tls.certManager.enabled are both given: cert-manager makes the Secret itself" -}}
{{- end -}}
{{- if and $v.tls.certManager.enabled (not $v.tls.certManager.issuerRef.name) -}}
  {{- fail "tls.certManager.issuerRef.name is not set: name the Issuer or ClusterIssuer of cert-manager" -}}
{{- end -}}
{{- if and $v.tls.certManager.enabled (not $v.hub.names) -}}
  {{- fail "hub.names is empty: a certificate of cert-manager needs the names under which the hub is reached" -}}
{{- end -}}
{{- if and $v.signIn.issuerURL (not $v.signIn.clientID) -}}
  {{- fail "signIn.clientID is not set: register postern as a public client at the identity provider, with http://127.0.0.1/callback as redirect URI" -}}
{{- end -}}
{{- if and $v.audit.webhook.url (not $v.audit.webhook.secret) -}}
  {{- fail "audit.webhook.secret is not set: name a Secret with what signs the records (kubectl create secret generic NAME --from-file=secret=FILE)" -}}
{{- end -}}
{{- if and (not $v.gateway.listener.enabled) (or $v.gateway.listener.tlsSecret $v.gateway.listener.clientCAConfigMap) -}}
  {{- fail "gateway.listener has settings and is not enabled: client certificates and a certificate of its own are for a listener of the gateway; give gateway.listener.enabled=true" -}}
{{- end -}}
{{- if and $v.proxy.credentialsSecret (not $v.proxy.enabled) -}}
  {{- fail "proxy.credentialsSecret is given, and proxy.enabled is not: passwords are for the hub's own proxy" -}}
{{- end -}}
{{- if and $v.issuer.keysSecret (not $v.issuer.url) -}}
  {{- fail "issuer.keysSecret is given, and issuer.url is not: keys sign tokens of an issuer" -}}
{{- end -}}
{{- if and $v.issuer.managedKeysSecret (not $v.issuer.url) -}}
  {{- fail "issuer.managedKeysSecret is given, and issuer.url is not: keys sign tokens of an issuer" -}}
{{- end -}}
{{- if and $v.issuer.managedKeysSecret $v.issuer.keysSecret -}}
  {{- fail "issuer.managedKeysSecret and issuer.keysSecret are both given: either the hub keeps the keys, or somebody else does" -}}
{{- end -}}
{{- range $name, $value := dict "hub.busKeySecret" $v.hub.busKeySecret "issuer.managedKeysSecret" $v.issuer.managedKeysSecret "issuer.keysSecret" $v.issuer.keysSecret "tls.secret" $v.tls.secret "audit.webhook.secret" $v.audit.webhook.secret "gateway.listener.tlsSecret" $v.gateway.listener.tlsSecret "proxy.credentialsSecret" $v.proxy.credentialsSecret "test.tokenSecret" $v.test.tokenSecret -}}
  {{- if and $value (not (regexMatch "^[a-z0-9]([-a-z0-9.]{0,250}[a-z0-9])?$" $value)) -}}
    {{- fail (printf "%s is not the name of a Secret. A secret itself never stands among the values: kubectl create secret generic NAME --from-file=KEY=FILE, and give NAME" $name) -}}
  {{- end -}}
{{- end -}}
{{- end -}}

{{/* Whether the hub asks the API server of its cluster; empty if it does not. */}}
{{- define "hub.asksCluster" -}}
{{- if or .Values.gateway.ownCluster .Values.issuer.managedKeysSecret -}}true{{- end -}}
{{- end -}}

{{/* The names of the Service, shortest first. */}}
{{- define "hub.serviceNames" -}}
{{- $name := include "postern.fullname" . -}}
{{- $ns := .Release.Namespace -}}
{{- list $name (printf "%s.%s" $name $ns) (printf "%s.%s.svc" $name $ns) (printf "%s.%s.svc.%s" $name $ns .Values.clusterDomain) | join "," -}}
{{- end -}}

{{/* The Secret of the certificate, if the hub does not present its own. */}}
{{- define "hub.tlsSecret" -}}
{{- if .Values.tls.certManager.enabled -}}{{ include "postern.fullname" . }}-tls{{- else -}}{{ .Values.tls.secret }}{{- end -}}
{{- end -}}

{{/* The name under which the hub is reached from here: it stands in the certificate that it presents. */}}
{{- define "hub.host" -}}
{{- if and (include "hub.tlsSecret" .) .Values.hub.names -}}
{{- first .Values.hub.names -}}
{{- else -}}
{{- printf "%s.%s.svc" (include "postern.fullname" .) .Release.Namespace -}}
{{- end -}}
{{- end -}}

{{/* The settings, as variables of the hub. */}}
{{- define "hub.env" -}}
{{- $v := .Values -}}
{{- $texts := dict
  "TRUST_DOMAIN" $v.hub.trustDomain "OIDC_ISSUER_URL" $v.signIn.issuerURL "ISSUER_URL" $v.issuer.url
  "AUDIT_WEBHOOK_URL" $v.audit.webhook.url "AUDIT_SYSLOG" $v.audit.syslog.address
  "GATEWAY_USER_PREFIX" $v.gateway.userPrefix "GATEWAY_GROUP_PREFIX" $v.gateway.groupPrefix
  "LIMIT" (join "," $v.hub.limits) "GATEWAY_ADDITIONAL_NAMES" (join "," $v.gateway.additionalNames)
  "GATEWAY_RESERVED" (join "," $v.gateway.reserved) "GATEWAY_PASS_THROUGH" (join "," $v.gateway.passThrough)
  "GATEWAY_TOKEN_CLUSTER" (join "," (concat $v.gateway.tokenClusters (compact (list $v.gateway.ownCluster)))) -}}
{{- if $v.signIn.issuerURL -}}
{{- $texts = merge $texts (dict
  "OIDC_CLIENT_ID" $v.signIn.clientID "OIDC_USERNAME_CLAIM" $v.signIn.usernameClaim "OIDC_USERNAME_PREFIX" $v.signIn.usernamePrefix
  "OIDC_GROUPS_CLAIM" $v.signIn.groupsClaim "OIDC_GROUPS_PREFIX" $v.signIn.groupsPrefix "SESSION_TTL" $v.signIn.sessionTTL
  "OIDC_REQUIRED_CLAIM" (join "," $v.signIn.requiredClaims) "OIDC_SIGNING_ALGS" (join "," $v.signIn.signingAlgs)
  "OIDC_SCOPE" (join "," $v.signIn.scopes) "OIDC_ADMIN_GROUP" (join "," $v.signIn.adminGroups)
  "OIDC_ADMIN_USER" (join "," $v.signIn.adminUsers)) -}}
{{- end -}}
- {name: POSTERN_DATA, value: /var/lib/postern/hub}
- {name: POSTERN_LISTEN, value: ":4222"}
- {name: POSTERN_TLS_NAME, value: {{ concat (splitList "," (include "hub.serviceNames" .)) $v.hub.names | join "," | quote }}}
- {name: POSTERN_CREDENTIAL_TTL, value: {{ $v.hub.credentialTTL | quote }}}
- {name: POSTERN_AUDIT_MAX_AGE, value: {{ $v.audit.maxAge | quote }}}
- {name: POSTERN_AUDIT_MAX_BYTES, value: {{ $v.audit.maxBytes | quote }}}
- {name: POSTERN_AUDIT_OPEN_AFTER, value: {{ $v.audit.openAfter | quote }}}
- {name: POSTERN_GATEWAY_REQUESTS_PER_USER, value: {{ $v.gateway.requestsPerUser | int | quote }}}
- {name: POSTERN_GATEWAY_STREAMS_PER_USER, value: {{ $v.gateway.streamsPerUser | int | quote }}}
- {name: POSTERN_METRICS, value: ":{{ $v.metrics.port | int }}"}
- {name: POSTERN_DRAIN_TIMEOUT, value: {{ $v.hub.drainTimeout | quote }}}
- {name: POSTERN_LOG_LEVEL, value: {{ $v.hub.logLevel }}}
- {name: POSTERN_LOG_FORMAT, value: {{ $v.hub.logFormat }}}
{{- range $name, $value := $texts }}
{{- if $value }}
- {name: POSTERN_{{ $name }}, value: {{ $value | quote }}}
{{- end }}
{{- end }}
{{- range $file := include "hub.files" . | fromJsonArray }}
{{- range $name, $path := $file.env }}
- {name: POSTERN_{{ $name }}, value: {{ printf "/etc/postern/%s/%s" $file.name $path | trimSuffix "/" }}}
{{- end }}
{{- end }}
{{- if and $v.issuer.url (not $v.issuer.keysSecret) }}
- {name: POSTERN_ISSUER_KEY_TYPE, value: {{ $v.issuer.keyType | quote }}}
{{- end }}
{{- with $v.issuer.managedKeysSecret }}
- {name: POSTERN_ISSUER_KEYS_SECRET, value: {{ . | quote }}}
{{- end }}
{{- if $v.gateway.listener.enabled }}
- {name: POSTERN_GATEWAY_LISTEN, value: ":{{ $v.gateway.listener.port | int }}"}
{{- end }}
{{- if $v.proxy.enabled }}
- {name: POSTERN_HTTP, value: ":{{ $v.proxy.port | int }}"}
{{- end }}
{{- end -}}

{{/* The files that the hub is given, as JSON: a name, where from, and the variables that name them. */}}
{{- define "hub.files" -}}
{{- $v := .Values -}}
{{- $all := list -}}
{{- with include "hub.tlsSecret" . -}}
{{- $all = append $all (dict "name" "tls" "secret" . "items" (dict "tls.crt" "tls.crt" "tls.key" "tls.key") "env" (dict "TLS_CERT_FILE" "tls.crt" "TLS_KEY_FILE" "tls.key")) -}}
{{- end -}}
{{- with $v.hub.busKeySecret -}}
{{- $all = append $all (dict "name" "bus-key" "secret" . "items" (dict $v.hub.busKeySecretKey "bus.key") "env" (dict "BUS_KEY_FILE" "bus.key")) -}}
{{- end -}}
{{- with $v.issuer.keysSecret -}}
{{- $all = append $all (dict "name" "issuer-keys" "secret" . "env" (dict "ISSUER_KEYS_DIR" "")) -}}
{{- end -}}
{{- with $v.signIn.caConfigMap -}}
{{- $all = append $all (dict "name" "oidc-ca" "configMap" . "items" (dict $v.signIn.caKey "ca.crt") "env" (dict "OIDC_CA_FILE" "ca.crt")) -}}
{{- end -}}
{{- with $v.audit.webhook.secret -}}
{{- $all = append $all (dict "name" "audit-webhook" "secret" . "items" (dict $v.audit.webhook.secretKey "secret") "env" (dict "AUDIT_WEBHOOK_SECRET_FILE" "secret")) -}}
{{- end -}}
{{- with $v.audit.webhook.caConfigMap -}}
{{- $all = append $all (dict "name" "audit-webhook-ca" "configMap" . "items" (dict $v.audit.webhook.caKey "ca.crt") "env" (dict "AUDIT_WEBHOOK_CA_FILE" "ca.crt")) -}}
{{- end -}}
{{- with $v.audit.syslog.caConfigMap -}}
{{- $all = append $all (dict "name" "audit-syslog-ca" "configMap" . "items" (dict $v.audit.syslog.caKey "ca.crt") "env" (dict "AUDIT_SYSLOG_CA_FILE" "ca.crt")) -}}
{{- end -}}
{{- with $v.gateway.listener.tlsSecret -}}
{{- $all = append $all (dict "name" "gateway-tls" "secret" . "items" (dict "tls.crt" "tls.crt" "tls.key" "tls.key") "env" (dict "GATEWAY_TLS_CERT_FILE" "tls.crt" "GATEWAY_TLS_KEY_FILE" "tls.key")) -}}
{{- end -}}
{{- with $v.gateway.listener.clientCAConfigMap -}}
{{- $all = append $all (dict "name" "gateway-client-ca" "configMap" . "items" (dict $v.gateway.listener.clientCAKey "ca.crt") "env" (dict "GATEWAY_CLIENT_CA_FILE" "ca.crt")) -}}
{{- end -}}
{{- with $v.proxy.credentialsSecret -}}
{{- $all = append $all (dict "name" "proxy-credentials" "secret" . "optional" true "items" (dict "credentials" "credentials") "env" (dict "CREDENTIALS_FILE" "credentials")) -}}
{{- end -}}
{{- toJson $all -}}
{{- end -}}

{{/* The hub's volume. */}}
{{- define "hub.claim" -}}
{{- default (printf "data-%s-0" (include "postern.fullname" .)) .Values.persistence.existingClaim -}}
{{- end -}}
