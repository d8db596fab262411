package controller

import (
	"fmt"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"postern.dev/postern/internal/config"
	"postern.dev/postern/operator/api/v1alpha1"
	"postern.dev/postern/operator/selection"
)

// Where things are in a proxy's pod.
const (
	tokenDir       = "/var/run/secrets/postern.dev/token"
	credentialsDir = "/var/run/secrets/postern.dev/credentials"
	user           = 65532 // of our images

	wayVariable = "AGENT_PROXY" // HTTP proxy on the way to the hub
)

// How a proxy's pod ends: it is taken out of the Service, then streams may finish.
const (
	unpublishSeconds = 3  // until nobody connects any more
	drainSeconds     = 25 // for streams
	killSeconds      = 30 // until it is killed
)

// desired is what a Proxy needs that has a proxy of its own, without the Secret that it keeps, in the
// order in which it is made. port is the Service's.
func desired(p v1alpha1.Object, h Hub, pods config.ProxyPods, port int32) ([]client.Object, error) {
	account := &corev1.ServiceAccount{
		TypeMeta: typeMeta("v1", "ServiceAccount"), ObjectMeta: objectMeta(p), AutomountServiceAccountToken: new(bool),
	}
	service := &corev1.Service{
		TypeMeta: typeMeta("v1", "Service"), ObjectMeta: objectMeta(p),
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeClusterIP, Selector: selectorLabels(p),
			Ports: []corev1.ServicePort{{Name: "http", Protocol: corev1.ProtocolTCP, Port: port, TargetPort: intstr.FromString("http")}},
		},
	}
	one := intstr.FromInt32(1)
	always := policyv1.AlwaysAllow
	budget := &policyv1.PodDisruptionBudget{
		TypeMeta: typeMeta("policy/v1", "PodDisruptionBudget"), ObjectMeta: objectMeta(p),
		Spec: policyv1.PodDisruptionBudgetSpec{
			MaxUnavailable: &one, Selector: &metav1.LabelSelector{MatchLabels: selectorLabels(p)}, UnhealthyPodEvictionPolicy: &always,
		},
	}
	deployment, err := deployment(p, h, pods)
	if err != nil {
		return nil, err
	}
	return []client.Object{account, service, budget, networkPolicy(p, h, pods), deployment}, nil
}

func typeMeta(version, kind string) metav1.TypeMeta {
	return metav1.TypeMeta{APIVersion: version, Kind: kind}
}

// objectMeta is that of everything that is made for a Proxy: it goes when the Proxy goes.
func objectMeta(p v1alpha1.Object) metav1.ObjectMeta {
	return metav1.ObjectMeta{
		Namespace: p.GetNamespace(), Name: ObjectName(p.GetName()), Labels: objectLabels(p),
		OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(p, p.GetObjectKind().GroupVersionKind())},
	}
}

func deployment(p v1alpha1.Object, h Hub, pods config.ProxyPods) (*appsv1.Deployment, error) {
	resources, err := requirements(pods)
	if err != nil {
		return nil, err
	}
	replicas, yes, no := int32(pods.Replicas), true, false //nolint:gosec // at most 20
	none, one := intstr.FromInt32(0), intstr.FromInt32(1)
	uid, kill, history := int64(user), int64(killSeconds), int32(3)
	readable := int32(0o440)
	args := []string{
		"proxy", "--connect-url=" + h.ConnectURL, "--organization=" + h.Organization,
		fmt.Sprintf("--http=:%d", ProxyPort), fmt.Sprintf("--metrics=:%d", metricsPort),
		"--token-file=" + tokenDir + "/token", "--credentials-file=" + credentialsDir + "/" + keyCredentials,
		fmt.Sprintf("--drain-timeout=%ds", drainSeconds), "--log-format=json",
	}
	kept := []corev1.KeyToPath{{Key: keyCredentials, Path: keyCredentials}}
	if h.CA != "" {
		args = append(args, "--ca-file="+credentialsDir+"/"+keyCA)
		kept = append(kept, corev1.KeyToPath{Key: keyCA, Path: keyCA})
	}
	if h.CAPin != "" {
		args = append(args, "--ca-pin="+h.CAPin)
	}
	secret := p.Common().SecretRef
	probe := func(path string, period, failures int32) *corev1.Probe {
		return &corev1.Probe{
			ProbeHandler:  corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: path, Port: intstr.FromString("metrics"), Scheme: corev1.URISchemeHTTP}},
			PeriodSeconds: period, TimeoutSeconds: 6, FailureThreshold: failures, SuccessThreshold: 1,
		}
	}
	container := corev1.Container{
		Name: "proxy", Image: pods.Image, ImagePullPolicy: corev1.PullPolicy(pods.PullPolicy), Args: args,
		Env: environment(pods),
		Ports: []corev1.ContainerPort{
			{Name: "http", ContainerPort: ProxyPort, Protocol: corev1.ProtocolTCP},
			{Name: "metrics", ContainerPort: metricsPort, Protocol: corev1.ProtocolTCP},
		},
		Resources: resources,
		VolumeMounts: []corev1.VolumeMount{
			{Name: "token", MountPath: tokenDir, ReadOnly: true},
			{Name: "credentials", MountPath: credentialsDir, ReadOnly: true},
		},
		// While it starts and the hub is away it is alive, and not ready.
		LivenessProbe:  probe("/healthz", 10, 6),
		ReadinessProbe: probe("/readyz", 5, 2),
		Lifecycle:      &corev1.Lifecycle{PreStop: &corev1.LifecycleHandler{Sleep: &corev1.SleepAction{Seconds: unpublishSeconds}}},
		SecurityContext: &corev1.SecurityContext{
			AllowPrivilegeEscalation: &no, ReadOnlyRootFilesystem: &yes, RunAsNonRoot: &yes,
			Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
		},
	}
	var pull []corev1.LocalObjectReference
	for _, name := range pods.PullSecrets {
		pull = append(pull, corev1.LocalObjectReference{Name: name})
	}
	selector := metav1.LabelSelector{MatchLabels: selectorLabels(p)}
	return &appsv1.Deployment{
		TypeMeta: typeMeta("apps/v1", "Deployment"), ObjectMeta: objectMeta(p),
		Spec: appsv1.DeploymentSpec{
			Replicas: &replicas, Selector: &selector, RevisionHistoryLimit: &history,
			Strategy: appsv1.DeploymentStrategy{
				Type: appsv1.RollingUpdateDeploymentStrategyType, RollingUpdate: &appsv1.RollingUpdateDeployment{MaxUnavailable: &none, MaxSurge: &one},
			},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: objectLabels(p), Annotations: map[string]string{selection.AnnotationInject: "false"}},
				Spec: corev1.PodSpec{
					ServiceAccountName: ObjectName(p.GetName()), AutomountServiceAccountToken: &no, EnableServiceLinks: &no,
					TerminationGracePeriodSeconds: &kill, PriorityClassName: pods.PriorityClass, NodeSelector: pairs(pods.NodeSelector), Tolerations: tolerations(pods.Tolerations), ImagePullSecrets: pull,
					SecurityContext: &corev1.PodSecurityContext{
						RunAsNonRoot: &yes, RunAsUser: &uid, RunAsGroup: &uid, FSGroup: &uid,
						SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
					},
					TopologySpreadConstraints: spread(selector),
					Containers:                []corev1.Container{container},
					Volumes: []corev1.Volume{
						{Name: "token", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{
							SecretName: secret.Name, DefaultMode: &readable, Items: []corev1.KeyToPath{{Key: secret.Key, Path: "token"}}}}},
						{Name: "credentials", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{
							SecretName: ObjectName(p.GetName()), DefaultMode: &readable, Items: kept}}},
					},
				},
			},
		},
	}, nil
}

// environment is what a proxy is told of its pod, and of the HTTP proxy on its way to the hub.
func environment(pods config.ProxyPods) []corev1.EnvVar {
	all := []corev1.EnvVar{{Name: "POD_NAME", ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{APIVersion: "v1", FieldPath: "metadata.name"}}}}
	if name, key, ok := strings.Cut(pods.HTTPProxySecret, "/"); ok {
		return append(all, corev1.EnvVar{Name: wayVariable, ValueFrom: &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{
			LocalObjectReference: corev1.LocalObjectReference{Name: name}, Key: key,
		}}})
	}
	if pods.HTTPProxy != "" {
		all = append(all, corev1.EnvVar{Name: wayVariable, Value: pods.HTTPProxy})
	}
	return all
}

// tolerations reads a list of KEY[=VALUE][:EFFECT].
func tolerations(list []string) (all []corev1.Toleration) {
	for _, one := range list {
		label, effect, _ := strings.Cut(one, ":")
		t := corev1.Toleration{Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffect(effect)}
		if key, value, ok := strings.Cut(label, "="); ok {
			t.Key, t.Operator, t.Value = key, corev1.TolerationOpEqual, value
		} else {
			t.Key = label
		}
		all = append(all, t)
	}
	return all
}

// spread keeps the pods of a proxy on different nodes, and in different zones, where it can.
func spread(selector metav1.LabelSelector) []corev1.TopologySpreadConstraint {
	var all []corev1.TopologySpreadConstraint
	for _, key := range []string{corev1.LabelHostname, corev1.LabelTopologyZone} {
		all = append(all, corev1.TopologySpreadConstraint{
			MaxSkew: 1, TopologyKey: key, WhenUnsatisfiable: corev1.ScheduleAnyway, LabelSelector: &selector, MatchLabelKeys: []string{"pod-template-hash"},
		})
	}
	return all
}

func requirements(pods config.ProxyPods) (corev1.ResourceRequirements, error) {
	parse := func(list []string) (corev1.ResourceList, error) {
		all := corev1.ResourceList{}
		for name, value := range pairs(list) {
			q, err := resource.ParseQuantity(value)
			if err != nil {
				return nil, fmt.Errorf("resource %s=%s: %w", name, value, err)
			}
			all[corev1.ResourceName(name)] = q
		}
		return all, nil
	}
	requests, err := parse(pods.Requests)
	if err != nil {
		return corev1.ResourceRequirements{}, err
	}
	limits, err := parse(pods.Limits)
	return corev1.ResourceRequirements{Requests: requests, Limits: limits}, err
}

// pairs reads a list of KEY=VALUE.
func pairs(list []string) map[string]string {
	if len(list) == 0 {
		return nil
	}
	all := make(map[string]string, len(list))
	for _, one := range list {
		key, value, _ := strings.Cut(one, "=")
		all[key] = value
	}
	return all
}
