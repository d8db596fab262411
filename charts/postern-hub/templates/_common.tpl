{{/*
What all charts of Postern have in common. The file is the same in each of them.
*/}}

{{- define "postern.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 50 | trimSuffix "-" -}}
{{- end -}}

{{/* The name of everything: short enough for endings such as -metrics. */}}
{{- define "postern.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "postern.selectorLabels" -}}
app.kubernetes.io/name: {{ include "postern.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "postern.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{ include "postern.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: postern
{{- end -}}

{{/* An image: called with (list . IMAGE), where IMAGE has repository, tag and digest. */}}
{{- define "postern.image" -}}
{{- $root := index . 0 -}}
{{- $image := index . 1 -}}
{{- if $image.digest -}}
{{- printf "%s@%s" $image.repository $image.digest -}}
{{- else -}}
{{- printf "%s:%s" $image.repository (default $root.Chart.AppVersion $image.tag) -}}
{{- end -}}
{{- end -}}

{{- define "postern.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "postern.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{/* Where pods run, and with which priority. */}}
{{- define "postern.placement" -}}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* How pods are spread: called with (list . COMPONENT). */}}
{{- define "postern.spread" -}}
{{- $root := index . 0 -}}
{{- $component := index . 1 -}}
{{- if $root.Values.topologySpreadConstraints }}
topologySpreadConstraints:
  {{- toYaml $root.Values.topologySpreadConstraints | nindent 2 }}
{{- else }}
topologySpreadConstraints:
{{- range list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
  - maxSkew: 1
    topologyKey: {{ . }}
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "postern.selectorLabels" $root | nindent 8 }}
        app.kubernetes.io/component: {{ $component }}
{{- end }}
{{- end }}
{{- end -}}

{{/* The egress that every pod needs: DNS, also where the cluster's servers listen on another port. */}}
{{- define "postern.egressDNS" -}}
- ports:
    - {protocol: UDP, port: 53}
    - {protocol: TCP, port: 53}
    - {protocol: UDP, port: 5353}
    - {protocol: TCP, port: 5353}
{{- end -}}

{{/* Egress to networks, or any address if there are none: called with (list CIDRS PORTS). */}}
{{- define "postern.egressTo" -}}
{{- $cidrs := index . 0 -}}
{{- $ports := index . 1 -}}
- ports:
  {{- range $ports }}
    - {protocol: TCP, port: {{ . | int }}}
  {{- end }}
  {{- if $cidrs }}
  to:
    {{- range $cidrs }}
    - ipBlock: {cidr: {{ . | quote }}}
    {{- end }}
  {{- end }}
{{- end -}}

{{/* The port of a hub by its connect URL, and its networks if the host is an address. */}}
{{- define "postern.hubPort" -}}
{{- $host := (urlParse .).host -}}
{{- $port := regexFind ":[0-9]+$" $host | trimPrefix ":" -}}
{{- if $port -}}{{ $port }}{{- else if hasPrefix "tls:" . -}}4222{{- else -}}443{{- end -}}
{{- end -}}

{{- define "postern.hubCIDR" -}}
{{- $host := (urlParse .).host | regexFind "^[0-9]+\\.[0-9]+\\.[0-9]+\\.[0-9]+" -}}
{{- if $host -}}{{ $host }}/32{{- end -}}
{{- end -}}

{{/* Refuses an address whose port is none: called with (list VALUE ADDRESS). */}}
{{- define "postern.checkPort" -}}
{{- $rest := index . 1 | regexFind "://[^/]*" | trimPrefix "://" | regexFind "[^]]*$" -}}
{{- if contains ":" $rest -}}
  {{- $port := $rest | regexFind "[^:]*$" -}}
  {{- if not (and (regexMatch "^[0-9]{1,5}$" $port) (ge (atoi $port) 1) (le (atoi $port) 65535)) -}}
    {{- fail (printf "%s %q: a port is a number from 1 to 65535" (index . 0) (index . 1)) -}}
  {{- end -}}
{{- end -}}
{{- end -}}

{{/* Who may read metrics, as ingress. */}}
{{- define "postern.ingressMetrics" -}}
- ports:
    - {protocol: TCP, port: metrics}
  from:
  {{- if .Values.networkPolicy.metricsFrom }}
    {{- toYaml .Values.networkPolicy.metricsFrom | nindent 4 }}
  {{- else }}
    - namespaceSelector: {}
  {{- end }}
{{- end -}}
