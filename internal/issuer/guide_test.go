package issuer

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"postern.dev/postern/internal/controlplane"
	"postern.dev/postern/internal/fenced"
)

// guide returns the text of the guide, and what stands in its fenced blocks of a language.
func guide(t *testing.T, language string) (text string, blocks []string) {
	t.Helper()
	file := filepath.Join("..", "..", "docs", "guide", "identity-tokens.md")
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	all, err := fenced.Blocks(file)
	if err != nil {
		t.Fatal(err)
	}
	for _, block := range all {
		if slices.Equal(block.Words, []string{language}) {
			blocks = append(blocks, block.Text)
		}
	}
	return string(b), blocks
}

// subjectOf is the subject of a token that an issuer makes for acme/prod-1.
func subjectOf(t *testing.T, provider, audience string) string {
	t.Helper()
	token, err := open(t, t.TempDir()).Mint(Request{
		Account: "acme", ControlPlane: controlplane.Ref{Name: "prod-1"}, Provider: provider, Audiences: []string{audience},
	})
	if err != nil {
		t.Fatal(err)
	}
	return token.Subject
}

// like is StringLike of AWS.
func like(pattern, s string) bool {
	return regexp.MustCompile("^" + strings.NewReplacer(`\*`, ".*", `\?`, ".").Replace(regexp.QuoteMeta(pattern)) + "$").MatchString(s)
}

// TestGuidePolicies holds the trust policies of the guide to tokens as they are: they are JSON, have
// the fields that the clouds want and no others, and let exactly the tokens of the guide in.
func TestGuidePolicies(t *testing.T) {
	_, blocks := guide(t, "json")
	if len(blocks) != 3 {
		t.Fatalf("the guide has %d blocks of JSON", len(blocks))
	}
	strict := func(text string, into any) {
		t.Helper()
		d := json.NewDecoder(strings.NewReader(text))
		d.DisallowUnknownFields()
		if err := d.Decode(into); err != nil {
			t.Fatalf("%v:\n%s", err, text)
		}
	}
	host := strings.TrimPrefix(testURL, "https://")
	subject := subjectOf(t, "provider-aws", "sts.amazonaws.com")
	for n, text := range blocks[:2] {
		var policy struct {
			Version   string
			Statement []struct {
				Effect, Action string
				Principal      struct{ Federated string }
				Condition      map[string]map[string]string
			}
		}
		strict(text, &policy)
		if policy.Version != "2012-10-17" || len(policy.Statement) != 1 {
			t.Fatalf("%+v", policy)
		}
		s := policy.Statement[0]
		if s.Effect != "Allow" || s.Action != "sts:AssumeRoleWithWebIdentity" || s.Principal.Federated != "arn:aws:iam::123456789012:oidc-provider/"+host {
			t.Errorf("%+v", s)
		}
		how, pattern := "StringEquals", s.Condition["StringEquals"][host+":sub"]
		if n == 1 {
			how, pattern = "StringLike", s.Condition["StringLike"][host+":sub"]
		}
		want := map[string]map[string]string{"StringEquals": {host + ":aud": "sts.amazonaws.com"}}
		if want[how] == nil {
			want[how] = map[string]string{}
		}
		want[how][host+":sub"] = pattern
		if diff := cmp.Diff(want, s.Condition); diff != "" {
			t.Error(diff)
		}
		if n == 0 && pattern != subject || n == 1 && !like(pattern, subject) {
			t.Errorf("%s %q does not let %q in", how, pattern, subject)
		}
		for _, other := range []string{
			"mcp:other/prod-1:provider:provider-aws", "mcp:acme/staging:provider:provider-aws", subjectOf(t, "provider-gcp", "sts.amazonaws.com"),
		} {
			if like(pattern, other) {
				t.Errorf("%s %q lets %q in", how, pattern, other)
			}
		}
	}

	const azureAudience = "api://AzureADTokenExchange"
	var credential struct {
		Name      string   `json:"name"`
		Issuer    string   `json:"issuer"`
		Subject   string   `json:"subject"`
		Audiences []string `json:"audiences"`
	}
	strict(blocks[2], &credential)
	if credential.Issuer != testURL || credential.Subject != subjectOf(t, "provider-azure", azureAudience) || !slices.Equal(credential.Audiences, []string{azureAudience}) ||
		!regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_-]{2,119}$`).MatchString(credential.Name) {
		t.Errorf("%+v", credential)
	}
}

// TestGuideGoogle does the same for the commands for Google Cloud, which no test can run.
func TestGuideGoogle(t *testing.T) {
	text, blocks := guide(t, "text")
	i := slices.IndexFunc(blocks, func(b string) bool { return strings.HasPrefix(b, "gcloud ") })
	if i < 0 {
		t.Fatal("the guide has no commands for Google Cloud")
	}
	const provider = "projects/123456789012/locations/global/workloadIdentityPools/postern/providers/postern"
	subject := subjectOf(t, "provider-gcp", "//iam.googleapis.com/"+provider)
	if len(subject) > 127 {
		t.Errorf("the subject has %d characters, and Google takes 127", len(subject))
	}
	commands := strings.ReplaceAll(blocks[i], "\\\n", "")
	for _, want := range []string{
		"--issuer-uri " + testURL + " ", "--attribute-mapping google.subject=assertion.sub ",
		"principal://iam.googleapis.com/projects/123456789012/locations/global/workloadIdentityPools/postern/subject/" + subject + "'",
	} {
		if !strings.Contains(strings.Join(strings.Fields(commands), " ")+" ", want) {
			t.Errorf("the commands have no %q", want)
		}
	}
	condition := regexp.MustCompile(`assertion\.sub\.startsWith\("([^"]+)"\)`).FindStringSubmatch(commands)
	if condition == nil || !strings.HasPrefix(subject, condition[1]) || strings.HasPrefix("mcp:acme/prod-10:provider:provider-gcp", condition[1]) {
		t.Errorf("the condition %q, and the subject %s", condition, subject)
	}
	if !strings.Contains(text, "`//iam.googleapis.com/"+provider+"`") || !strings.Contains(text, "providerID: "+provider+"\n") {
		t.Error("the audience, or the ProviderConfig, names another provider")
	}
}
