{{- define "codeq.labels" -}}
app.kubernetes.io/name: codeq
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}
{{- define "codeq.peers" -}}
{{ .Release.Name }}-codeq-peers
{{- end }}
