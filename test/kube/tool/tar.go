package main

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// tarball is as much of tar as kubectl cp calls:
//
//	tar cf - PATH...
//	tar [-]x[m]f - [--no-same-permissions --no-same-owner] [-C DIR]
func tarball(args []string) error {
	if len(args) < 2 || args[1] != "-" {
		return errors.New("tar: only archives on standard input and output are known")
	}
	dir, paths := ".", []string(nil)
	for i := 2; i < len(args); i++ {
		switch {
		case args[i] == "-C" && i+1 < len(args):
			i++
			dir = args[i]
		case strings.HasPrefix(args[i], "--"):
			// Owners and permissions are never restored here.
		default:
			paths = append(paths, args[i])
		}
	}
	switch mode := strings.TrimPrefix(args[0], "-"); {
	case strings.HasPrefix(mode, "c"):
		return create(os.Stdout, dir, paths)
	case strings.HasPrefix(mode, "x"):
		return extract(os.Stdin, dir)
	default:
		return fmt.Errorf("tar: no mode %q", args[0])
	}
}

func create(w io.Writer, dir string, paths []string) error {
	out := tar.NewWriter(w)
	for _, root := range paths {
		if !filepath.IsAbs(root) {
			root = filepath.Join(dir, root)
		}
		err := filepath.WalkDir(root, func(name string, _ fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			return add(out, name)
		})
		if err != nil {
			return err
		}
	}
	return out.Close()
}

func add(out *tar.Writer, name string) error {
	info, err := os.Lstat(name)
	if err != nil {
		return err
	}
	link := ""
	if info.Mode()&fs.ModeSymlink != 0 {
		if link, err = os.Readlink(name); err != nil {
			return err
		}
	}
	header, err := tar.FileInfoHeader(info, link)
	if err != nil {
		return err
	}
	header.Name = strings.TrimPrefix(name, "/")
	if err := out.WriteHeader(header); err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return nil
	}
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(out, f)
	return err
}

func extract(r io.Reader, dir string) error {
	in := tar.NewReader(r)
	for {
		header, err := in.Next()
		if errors.Is(err, io.EOF) {
			// kubectl pads the archive; leaving the padding unread would break its pipe.
			_, err := io.Copy(io.Discard, r)
			return err
		}
		if err != nil {
			return err
		}
		if !filepath.IsLocal(header.Name) && header.Name != "." {
			return fmt.Errorf("tar: %s would leave the folder", header.Name)
		}
		if err := place(in, header, filepath.Join(dir, header.Name)); err != nil {
			return err
		}
	}
}

func place(in io.Reader, header *tar.Header, name string) error {
	switch header.Typeflag {
	case tar.TypeDir:
		return os.MkdirAll(name, 0o755)
	case tar.TypeSymlink:
		return os.Symlink(header.Linkname, name)
	case tar.TypeReg:
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			return err
		}
		f, err := os.OpenFile(name, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, fs.FileMode(header.Mode).Perm())
		if err != nil {
			return err
		}
		if _, err := io.Copy(f, in); err != nil {
			f.Close()
			return err
		}
		return f.Close()
	default:
		return fmt.Errorf("tar: %s is of type %q, which is not known", header.Name, header.Typeflag)
	}
}
