package controller

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"

	"golang.org/x/crypto/bcrypt"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"postern.dev/postern/operator/api/v1alpha1"
)

// passwordCost is that of the hash: the password has 128 random bits, which nobody guesses, and the
// proxy computes it for each new connection.
const passwordCost = bcrypt.MinCost

// secret makes sure that the Secret of a Proxy's proxy is there: a password for pods, a credentials
// file with its hash, in which the user name is the agent's, and the hub's CA. It returns which
// version of it there is then.
func (r *Reconciler) secret(ctx context.Context, p v1alpha1.Object, ca string) (version string, err error) {
	wanted := &corev1.Secret{TypeMeta: typeMeta("v1", "Secret"), ObjectMeta: objectMeta(p), Type: corev1.SecretTypeOpaque}
	var there corev1.Secret
	err = r.Direct.Get(ctx, client.ObjectKeyFromObject(wanted), &there)
	if err != nil && !apierrors.IsNotFound(err) {
		return "", fmt.Errorf("read the Secret of the proxy's password: %w", err)
	}
	if err == nil {
		if taken := notMine(p, &there, title(wanted)); taken != nil {
			return "", taken
		}
	}
	password, line := there.Data[keyPassword], there.Data[keyCredentials]
	if hash, ok := bytes.CutPrefix(line, []byte("*:")); !ok || len(password) == 0 || !plainHash(hash) || bcrypt.CompareHashAndPassword(hash, password) != nil {
		password = []byte(rand.Text())
		if hash, err = bcrypt.GenerateFromPassword(password, passwordCost); err != nil {
			return "", fmt.Errorf("hash the proxy's password: %w", err)
		}
		line = append([]byte("*:"), hash...)
	}
	wanted.Data = map[string][]byte{keyPassword: password, keyCredentials: line}
	if ca != "" {
		wanted.Data[keyCA] = []byte(ca)
	}
	if version, err = r.applyOne(ctx, wanted); err != nil {
		version = there.ResourceVersion // it stays as others have made it
	}
	return version, err
}

// keeps reports whether the Secret of a proxy's password is as it was left. It is looked at each
// time, since the operator may not watch Secrets: that would be the right to read all of them.
func (r *Reconciler) keeps(ctx context.Context, p v1alpha1.Object, version string) (bool, error) {
	there := &metav1.PartialObjectMetadata{TypeMeta: typeMeta("v1", "Secret")}
	err := r.Direct.Get(ctx, client.ObjectKey{Namespace: p.GetNamespace(), Name: ObjectName(p.GetName())}, there)
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look for the Secret of the proxy's password: %w", err)
	}
	return there.ResourceVersion == version, nil
}

// token reads the robot's token of a Proxy.
func (r *Reconciler) token(ctx context.Context, p v1alpha1.Object) ([]byte, *problem, error) {
	ref := p.Common().SecretRef
	var secret corev1.Secret
	err := r.Direct.Get(ctx, client.ObjectKey{Namespace: p.GetNamespace(), Name: ref.Name}, &secret)
	switch {
	case apierrors.IsNotFound(err):
		return nil, &problem{ReasonSecretMissing, fmt.Sprintf("There is no Secret %s in namespace %s. Create it with a robot's token: "+
			"kubectl create secret generic %s -n %s --from-literal=%s=TOKEN", ref.Name, p.GetNamespace(), ref.Name, p.GetNamespace(), ref.Key)}, nil
	case err != nil:
		return nil, nil, fmt.Errorf("read the Secret of the robot's token: %w", err)
	case len(secret.Data[ref.Key]) == 0:
		return nil, &problem{ReasonSecretKeyMissing, fmt.Sprintf("Secret %s has no key %s, or nothing in it. Put a robot's token there, "+
			"or set spec.secretRef.key to the key that has it.", ref.Name, ref.Key)}, nil
	}
	return secret.Data[ref.Key], nil, nil
}
