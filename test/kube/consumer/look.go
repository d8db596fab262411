package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"log/slog"
	"os"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

// look lists ConfigMaps and Secrets of the other cluster again and again, and says what came of it:
// how many there are, or why not, and by the first bytes of its hash which token the file held then.
func look(ctx context.Context, log *slog.Logger, remote kubernetes.Interface, tokenFile string, pace time.Duration) error {
	tick := time.NewTicker(pace)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
		token, err := os.ReadFile(tokenFile)
		if err != nil {
			return fmt.Errorf("read the token: %w", err)
		}
		sum := sha256.Sum256(token)
		bounded, cancel := context.WithTimeout(ctx, requestMax)
		maps, err := remote.CoreV1().ConfigMaps(remoteHome).List(bounded, metav1.ListOptions{})
		mapsSay := answer(len(maps.Items), err)
		secrets, err := remote.CoreV1().Secrets(remoteHome).List(bounded, metav1.ListOptions{})
		secretsSay := answer(len(secrets.Items), err)
		cancel()
		log.Info("looked", "token", hex.EncodeToString(sum[:4]), "configmaps", mapsSay, "secrets", secretsSay)
	}
}

// answer says what came of listing.
func answer(n int, err error) string {
	switch {
	case err == nil:
		return fmt.Sprintf("200/%d", n)
	case apierrors.IsForbidden(err):
		return "403"
	case apierrors.IsUnauthorized(err):
		return "401"
	default:
		return err.Error()
	}
}
