package internal_test

import (
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// rootModule is the import path of the repository's main module.
const rootModule = "postern.dev/postern"

// sourceFile is one Go file of the repository, parsed.
type sourceFile struct {
	path      string // relative to the root, with slashes
	dir       string // the same of its directory; "." for the root
	pkg       string // the name in its package clause
	imports   []string
	doc       string // the package doc comment, if it stands in this file
	lines     int
	generated bool
	test      bool
	syntax    *ast.File
}

// importPath returns the import path of the file's package, if it belongs to
// the main module.
func (f sourceFile) importPath() string { return joinImport(rootModule, f.dir) }

func joinImport(module, dir string) string {
	if dir == "." {
		return module
	}
	return module + "/" + dir
}

// loadSources parses every Go file under root, in all of its modules.
func loadSources(t *testing.T, root string) []sourceFile {
	t.Helper()
	var files []sourceFile
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // a build or an editor removed it meanwhile
		}
		if err != nil {
			return err
		}
		name := entry.Name()
		if entry.IsDir() {
			skip := name == "testdata" || name == "node_modules" || name == "vendor" || name == "bin" || name == "dist"
			if path != root && (skip || strings.HasPrefix(name, ".") || strings.HasPrefix(name, "_")) {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(name, ".go") {
			return nil
		}
		src, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		file, err := parseSource(filepath.ToSlash(rel), src)
		if err != nil {
			return err
		}
		files = append(files, file)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// parseSource makes a sourceFile of a file's text.
func parseSource(path string, src []byte) (sourceFile, error) {
	syntax, err := parser.ParseFile(token.NewFileSet(), path, src, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		return sourceFile{}, err
	}
	f := sourceFile{
		path:      path,
		dir:       dirOf(path),
		pkg:       syntax.Name.Name,
		lines:     strings.Count(string(src), "\n"),
		generated: ast.IsGenerated(syntax),
		test:      strings.HasSuffix(path, "_test.go"),
		syntax:    syntax,
	}
	if syntax.Doc != nil {
		f.doc = syntax.Doc.Text()
	}
	for _, spec := range syntax.Imports {
		imported, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			return sourceFile{}, err
		}
		f.imports = append(f.imports, imported)
	}
	return f, nil
}

func dirOf(path string) string {
	if i := strings.LastIndexByte(path, '/'); i >= 0 {
		return path[:i]
	}
	return "."
}

// nestedModules returns the directories below root that hold a go.mod.
func nestedModules(t *testing.T, root string) []string {
	t.Helper()
	var dirs []string
	for _, pattern := range []string{"*/go.mod", "*/*/go.mod", "*/*/*/go.mod"} {
		found, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, mod := range found {
			rel, err := filepath.Rel(root, filepath.Dir(mod))
			if err != nil {
				t.Fatal(err)
			}
			dirs = append(dirs, filepath.ToSlash(rel))
		}
	}
	return dirs
}
