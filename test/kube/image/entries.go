package image

import (
	"archive/tar"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
)

// entry is one file of a layer. Its content is that of the file source, unless source is empty.
type entry struct {
	header  tar.Header
	source  string
	content string
}

// entries lists the layer's files in a fixed order, folders before what they hold.
func (m Image) entries() []entry {
	folders := map[string]int64{"tmp": 0o1777, "etc": 0o755}
	var files []entry
	add := func(name string, e entry) {
		e.header.Name = strings.TrimPrefix(path.Clean(name), "/")
		for dir := path.Dir(e.header.Name); dir != "."; dir = path.Dir(dir) {
			if _, ok := folders[dir]; !ok {
				folders[dir] = 0o755
			}
		}
		files = append(files, e)
	}
	for _, name := range slices.Sorted(maps.Keys(m.Files)) {
		source := m.Files[name]
		e := entry{header: tar.Header{Typeflag: tar.TypeReg, Mode: 0o755}, source: source}
		// A file that is not there is reported when it is opened.
		if info, err := os.Stat(source); err == nil {
			e.header.Size = info.Size()
		}
		add(name, e)
	}
	for _, name := range slices.Sorted(maps.Keys(m.Data)) {
		content := m.Data[name]
		add(name, entry{
			header:  tar.Header{Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(content))},
			content: content,
		})
	}
	for _, name := range slices.Sorted(maps.Keys(m.Links)) {
		add(name, entry{header: tar.Header{Typeflag: tar.TypeSymlink, Mode: 0o777, Linkname: m.Links[name]}})
	}
	var all []entry
	for _, dir := range slices.Sorted(maps.Keys(folders)) {
		all = append(all, entry{header: tar.Header{Typeflag: tar.TypeDir, Mode: folders[dir], Name: dir + "/"}})
	}
	return append(all, files...)
}
