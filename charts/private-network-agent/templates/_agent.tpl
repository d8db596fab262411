{{/* The mistakes that a schema could not explain: each ends the rendering with a sentence that says what to do. */}}
{{- define "agent.check" -}}
{{- $a := .Values.agent -}}
{{- if $a.organizations -}}
  {{- range $name := list "organization" "tokenSecret" "privateKeySecret" "joinSecret" -}}
    {{- if index $a $name -}}
      {{- fail (printf "agent.%s cannot be given together with agent.organizations: make it part of an entry" $name) -}}
    {{- end -}}
  {{- end -}}
  {{- if or $a.workloadToken.enabled $a.allow $a.policy $a.policyConfigMap -}}
    {{- fail "agent.organizations is given: each entry says itself who the agent is (workloadToken) and what may be reached (allow)" -}}
  {{- end -}}
  {{- if .Values.gateway.enabled -}}
    {{- fail "agent.organizations is given: give the entries that shall have it their gateway: true" -}}
  {{- end -}}
  {{- range $i, $o := $a.organizations -}}
    {{- $where := printf "agent.organizations[%d]" $i -}}
    {{- if not $o.organization -}}{{- fail (printf "%s.organization is not set" $where) -}}{{- end -}}
    {{- if not (or $o.connectUrl $a.connectUrl) -}}{{- fail (printf "%s.connectUrl is not set, and neither is agent.connectUrl" $where) -}}{{- end -}}
    {{- if not (or $o.agentId $a.agentId) -}}{{- fail (printf "%s.agentId is not set, and neither is agent.agentId" $where) -}}{{- end -}}
    {{- $proofs := len (compact (list $o.tokenSecret $o.privateKeySecret (ternary "yes" "" (hasKey $o "workloadToken")))) -}}
    {{- if ne $proofs 1 -}}
      {{- fail (printf "%s says in %d ways who the agent is: give one of tokenSecret, privateKeySecret and workloadToken" $where $proofs) -}}
    {{- end -}}
  {{- end -}}
{{- else -}}
  {{- $proofs := compact (list $a.tokenSecret $a.privateKeySecret $a.joinSecret (ternary "yes" "" $a.workloadToken.enabled)) -}}
  {{- if not $a.connectUrl -}}{{- fail "agent.connectUrl is not set: give the hub's address, --set agent.connectUrl=tls://HOST" -}}{{- end -}}
  {{- if not $a.organization -}}{{- fail "agent.organization is not set: give the organization to work for; a new hub has one called default" -}}{{- end -}}
  {{- if not $a.agentId -}}{{- fail "agent.agentId is not set: give the agent a name, by which clients ask for it" -}}{{- end -}}
  {{- if not $proofs -}}
    {{- fail "nothing says who the agent is: give agent.tokenSecret, the name of a Secret with a robot token (kubectl create secret generic robot-token --from-file=token=token.json); or privateKeySecret, joinSecret or workloadToken.enabled" -}}
  {{- end -}}
  {{- if gt (len $proofs) 1 -}}
    {{- fail "more than one of agent.tokenSecret, agent.privateKeySecret, agent.joinSecret and agent.workloadToken.enabled is given: an agent proves in one way who it is" -}}
  {{- end -}}
{{- end -}}
{{- with $a.connectUrl -}}
  {{- $url := . -}}
  {{- if not (regexMatch "^(tls|https|wss)://[^/@?#]+(/[^@?#]*)?$" $url) -}}
    {{- fail (printf "agent.connectUrl %q is not the address of a hub: write tls://HOST or tls://HOST:PORT, or wss://HOST where only web traffic passes; credentials belong in a Secret" $url) -}}
  {{- end -}}
{{- end -}}
{{- range $i, $o := concat (list $a) $a.organizations -}}
  {{- $where := ternary (printf "agent.organizations[%d]" (sub $i 1)) "agent" (gt $i 0) -}}
  {{- range $key := list "agentId" "organization" -}}
    {{- $value := index $o $key -}}
    {{- if and $value (not (regexMatch "^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$" (toString $value))) -}}
      {{- fail (printf "%s.%s %q is not a name: it has 1 to 63 characters of a-z, 0-9 and '-', with none of '-' at either end" $where $key $value) -}}
    {{- end -}}
  {{- end -}}
  {{- with $o.connectUrl -}}{{- include "postern.checkPort" (list (printf "%s.connectUrl" $where) .) -}}{{- end -}}
{{- end -}}
{{- $secrets := dict "agent.tokenSecret" $a.tokenSecret "agent.privateKeySecret" $a.privateKeySecret "agent.joinSecret" $a.joinSecret "agent.ca.secret" $a.ca.secret "agent.httpProxy.secret" $a.httpProxy.secret -}}
{{- range $i, $o := $a.organizations -}}
  {{- $_ := set $secrets (printf "agent.organizations[%d].tokenSecret" $i) (default "" $o.tokenSecret) -}}
  {{- $_ := set $secrets (printf "agent.organizations[%d].privateKeySecret" $i) (default "" $o.privateKeySecret) -}}
{{- end -}}
{{- range $name, $value := $secrets -}}
  {{- if and $value (not (regexMatch "^[a-z0-9]([-a-z0-9.]{0,250}[a-z0-9])?$" $value)) -}}
    {{- fail (printf "%s is not the name of a Secret. A secret itself never stands among the values: kubectl create secret generic NAME --from-file=KEY=FILE, and give NAME" $name) -}}
  {{- end -}}
{{- end -}}
{{- if gt (len (compact (list $a.ca.pem $a.ca.secret $a.ca.configMap))) 1 -}}
  {{- fail "more than one of agent.ca.pem, agent.ca.secret and agent.ca.configMap is given" -}}
{{- end -}}
{{- if contains "PRIVATE KEY" $a.ca.pem -}}
  {{- fail "agent.ca.pem holds a private key: give the certificate alone, and take the key out of your values" -}}
{{- end -}}
{{- if and $a.httpProxy.url $a.httpProxy.secret -}}
  {{- fail "agent.httpProxy.url and agent.httpProxy.secret are both given" -}}
{{- end -}}
{{- if contains "@" $a.httpProxy.url -}}
  {{- fail "agent.httpProxy.url holds a user or password: put the URL into a Secret and name it with agent.httpProxy.secret" -}}
{{- end -}}
{{- if and $a.policy $a.policyConfigMap -}}
  {{- fail "agent.policy and agent.policyConfigMap are both given" -}}
{{- end -}}
{{- if and $a.joinSecret (gt (int .Values.replicas) 1) (ne .Values.state.accessMode "ReadWriteMany") -}}
  {{- fail (printf "replicas is %d, and the volume of an agent that joins can be mounted on one node only: give --set replicas=1, or --set state.accessMode=ReadWriteMany with a storage class that has it" (int .Values.replicas)) -}}
{{- end -}}
{{- end -}}

{{/* Whether the gateway is on; empty for no. */}}
{{- define "agent.gateway" -}}
{{- $on := or .Values.gateway.enabled (and .Values.impersonation.enabled (not .Values.agent.organizations)) -}}
{{- range .Values.agent.organizations -}}{{- if .gateway -}}{{- $on = true -}}{{- end -}}{{- end -}}
{{- if $on -}}true{{- end -}}
{{- end -}}

{{/* Where a Secret, ConfigMap or token is mounted. */}}
{{- define "agent.mounts" -}}
{{- $a := .Values.agent -}}
{{- if $a.tokenSecret }}
- {name: token, mountPath: /etc/postern/token, readOnly: true}
{{- end }}
{{- if $a.privateKeySecret }}
- {name: private-key, mountPath: /etc/postern/private-key, readOnly: true}
{{- end }}
{{- if $a.workloadToken.enabled }}
- {name: workload-token, mountPath: /var/run/secrets/postern.dev/agent, readOnly: true}
{{- end }}
{{- if $a.joinSecret }}
- {name: state, mountPath: /var/lib/postern}
- {name: join, mountPath: /etc/postern/join, readOnly: true}
{{- end }}
{{- if or $a.ca.pem $a.ca.secret $a.ca.configMap }}
- {name: ca, mountPath: /etc/postern/ca, readOnly: true}
{{- end }}
{{- if $a.httpProxy.caConfigMap }}
- {name: proxy-ca, mountPath: /etc/postern/proxy-ca, readOnly: true}
{{- end }}
{{- range $i, $o := $a.organizations }}
- {name: organization-{{ $i }}, mountPath: /etc/postern/organizations/{{ $i }}, readOnly: true}
{{- end }}
{{- end -}}

{{- define "agent.volumes" -}}
{{- $a := .Values.agent -}}
{{- $root := . -}}
{{- if $a.tokenSecret }}
- name: token
  secret:
    secretName: {{ $a.tokenSecret }}
    defaultMode: 288 # 0440
    items:
      - {key: {{ $a.tokenSecretKey }}, path: token}
{{- end }}
{{- if $a.privateKeySecret }}
- name: private-key
  secret:
    secretName: {{ $a.privateKeySecret }}
    defaultMode: 288 # 0440
    items:
      - {key: {{ $a.privateKeySecretKey }}, path: private-key}
{{- end }}
{{- if $a.workloadToken.enabled }}
- name: workload-token
  projected:
    sources:
      - serviceAccountToken:
          path: token
          audience: {{ $a.workloadToken.audience | quote }}
          expirationSeconds: {{ $a.workloadToken.expirationSeconds | int }}
{{- end }}
{{- if $a.joinSecret }}
- name: state
  persistentVolumeClaim:
    claimName: {{ default (printf "%s-state" (include "postern.fullname" .)) .Values.state.existingClaim }}
- name: join
  secret:
    secretName: {{ $a.joinSecret }}
    optional: true # once the agent has joined, the Secret may go
    defaultMode: 288 # 0440
    items:
      - {key: {{ $a.joinSecretKey }}, path: join}
{{- end }}
{{- if $a.ca.pem }}
- name: ca
  configMap:
    name: {{ include "postern.fullname" . }}
    items:
      - {key: ca.crt, path: ca.crt}
{{- else if $a.ca.secret }}
- name: ca
  secret:
    secretName: {{ $a.ca.secret }}
    items:
      - {key: {{ $a.ca.key }}, path: ca.crt}
{{- else if $a.ca.configMap }}
- name: ca
  configMap:
    name: {{ $a.ca.configMap }}
    items:
      - {key: {{ $a.ca.key }}, path: ca.crt}
{{- end }}
{{- if $a.httpProxy.caConfigMap }}
- name: proxy-ca
  configMap:
    name: {{ $a.httpProxy.caConfigMap }}
    items:
      - {key: {{ $a.httpProxy.caKey }}, path: ca.crt}
{{- end }}
{{- range $i, $o := $a.organizations }}
- name: organization-{{ $i }}
  projected:
    defaultMode: 288 # 0440
    sources:
    {{- if $o.tokenSecret }}
      - secret:
          name: {{ $o.tokenSecret }}
          items:
            - {key: {{ default "token" $o.tokenSecretKey }}, path: token}
    {{- else if $o.privateKeySecret }}
      - secret:
          name: {{ $o.privateKeySecret }}
          items:
            - {key: {{ default "private-key" $o.privateKeySecretKey }}, path: private-key}
    {{- else }}
      - serviceAccountToken:
          path: token
          audience: {{ default "postern" $o.workloadToken.audience | quote }}
          expirationSeconds: {{ $a.workloadToken.expirationSeconds | int }}
    {{- end }}
{{- end }}
{{- end -}}

{{/* What both the agent and helm test need to know to reach the hub, by the values of the agent. */}}
{{- define "agent.uplinkEnv" -}}
{{- $a := . -}}
{{- with $a.connectUrl }}
- {name: POSTERN_CONNECT_URL, value: {{ . | quote }}}
{{- end }}
{{- if or $a.ca.pem $a.ca.secret $a.ca.configMap }}
- {name: POSTERN_CA_FILE, value: /etc/postern/ca/ca.crt}
{{- end }}
{{- with $a.ca.pin }}
- {name: POSTERN_CA_PIN, value: {{ . | quote }}}
{{- end }}
{{- with $a.httpProxy.url }}
- {name: AGENT_PROXY, value: {{ . | quote }}}
{{- end }}
{{- with $a.httpProxy.secret }}
- name: AGENT_PROXY
  valueFrom:
    secretKeyRef: {name: {{ . }}, key: {{ $a.httpProxy.secretKey }}}
{{- end }}
{{- if $a.httpProxy.caConfigMap }}
- {name: POSTERN_PROXY_CA_FILE, value: /etc/postern/proxy-ca/ca.crt}
{{- end }}
{{- with $a.agentId }}
- {name: POSTERN_AGENT_ID, value: {{ . | quote }}}
{{- end }}
{{- with $a.organization }}
- {name: POSTERN_ORGANIZATION, value: {{ . | quote }}}
{{- end }}
{{- if $a.tokenSecret }}
- {name: POSTERN_TOKEN_FILE, value: /etc/postern/token/token}
{{- end }}
{{- if $a.privateKeySecret }}
- {name: POSTERN_PRIVATE_KEY_FILE, value: /etc/postern/private-key/private-key}
{{- end }}
{{- if $a.workloadToken.enabled }}
- {name: POSTERN_WORKLOAD_TOKEN_FILE, value: /var/run/secrets/postern.dev/agent/token}
{{- end }}
{{- if $a.joinSecret }}
- {name: POSTERN_STATE, value: /var/lib/postern/agent}
{{- end }}
{{- end -}}

{{/* The configuration file of an agent of several organizations. */}}
{{- define "agent.config" -}}
organizations:
{{- range $i, $o := .Values.agent.organizations }}
  - organization: {{ $o.organization | quote }}
  {{- range $key := list "alias" "agentId" "connectUrl" "caPin" "zone" }}
    {{- with index $o $key }}
    {{ $key }}: {{ . | quote }}
    {{- end }}
  {{- end }}
  {{- if $o.tokenSecret }}
    tokenFile: /etc/postern/organizations/{{ $i }}/token
  {{- else if $o.privateKeySecret }}
    privateKeyFile: /etc/postern/organizations/{{ $i }}/private-key
  {{- else }}
    workloadTokenFile: /etc/postern/organizations/{{ $i }}/token
  {{- end }}
  {{- range $key := list "allow" "deny" }}
    {{- with index $o $key }}
    {{ $key }}:
      {{- toYaml . | nindent 6 }}
    {{- end }}
  {{- end }}
  {{- if $o.gateway }}
    gateway: true
  {{- end }}
{{- end }}
{{- end -}}

{{/* All rules that allow, as a JSON list of texts: for the NetworkPolicy. */}}
{{- define "agent.rules" -}}
{{- $rules := .Values.agent.allow -}}
{{- range .Values.agent.organizations -}}{{- $rules = concat $rules (default (list) .allow) -}}{{- end -}}
{{- range (default (list) .Values.agent.policy.allow) -}}
  {{- $rules = append $rules (ternary . (get (ternary (dict) . (kindIs "string" .)) "rule") (kindIs "string" .)) -}}
{{- end -}}
{{- if not (or .Values.agent.policy .Values.agent.policyConfigMap .Values.agent.allow) -}}
  {{- $rules = append $rules "kubernetes" -}}
{{- end -}}
{{- if include "agent.gateway" . -}}{{- $rules = append $rules "kubernetes" -}}{{- end -}}
{{- uniq $rules | toJson -}}
{{- end -}}

{{/* The service accounts that may be impersonated, as JSON: lists of names by namespace. */}}
{{- define "agent.accounts" -}}
{{- $all := dict -}}
{{- range .Values.impersonation.serviceAccounts -}}
  {{- $_ := set $all .namespace (append (default (list) (get $all .namespace)) .name) -}}
{{- end -}}
{{- toJson $all -}}
{{- end -}}

{{/* Egress to what a rule allows. A rule for names can only be held to its ports: a NetworkPolicy knows no names. */}}
{{- define "agent.egressRule" -}}
{{- $host := . | trimPrefix "tcp:" | regexFind "^.*:" | trimSuffix ":" -}}
{{- $ports := . | regexFind "[^:]+$" -}}
{{- $network := $host | trimPrefix "[" | trimSuffix "]" -}}
{{- $ip := or (regexMatch "^[0-9.]+(/[0-9]+)?$" $network) (hasPrefix "[" $host) -}}
{{- if or (ne $ports "*") $ip -}}
-
{{- if ne $ports "*" }}
  ports:
    {{- $range := splitList "-" $ports }}
    {{- if eq (len $range) 2 }}
    - {protocol: TCP, port: {{ index $range 0 }}, endPort: {{ index $range 1 }}}
    {{- else }}
    - {protocol: TCP, port: {{ $ports }}}
    {{- end }}
{{- end }}
{{- if $ip }}
  to:
    - ipBlock: {cidr: {{ ternary $network (printf "%s/%s" $network (ternary "128" "32" (hasPrefix "[" $host))) (contains "/" $network) | quote }}}
{{- end }}
{{- else -}}
- {} # a rule allows every port of a name
{{- end -}}
{{- end -}}

{{/* The values of the agent of one organization, as JSON: called with (list . ENTRY). */}}
{{- define "agent.one" -}}
{{- $a := deepCopy (index . 0).Values.agent -}}
{{- $o := index . 1 -}}
{{- if or $o.connectUrl $o.caPin -}}
  {{- $_ := set $a "ca" (dict "pem" "" "secret" "" "configMap" "" "pin" (default "" $o.caPin)) -}}
{{- end -}}
{{- mergeOverwrite $a (pick $o "organization" "agentId" "connectUrl") | toJson -}}
{{- end -}}
