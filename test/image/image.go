package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"debug/buildinfo"
	"debug/elf"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
)

// errNotStatic is of a binary that asks for libraries: the image has none.
var errNotStatic = errors.New("the binary is not static: build it with CGO_ENABLED=0")

const (
	mediaIndex    = "application/vnd.oci.image.index.v1+json"
	mediaManifest = "application/vnd.oci.image.manifest.v1+json"
	mediaConfig   = "application/vnd.oci.image.config.v1+json"
	mediaLayer    = "application/vnd.oci.image.layer.v1.tar+gzip"
)

// spec is what an image consists of, beside its binaries: one for each architecture.
type spec struct {
	name  string // with a tag: localhost/mobula:dev
	path  string // of the binary in the image; it is the entry point
	user  int    // that it runs as, and the user's group
	roots string // file with CA certificates; "" for none
}

// descriptor refers to a blob, as the OCI image format has it.
type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int               `json:"size"`
	Platform    *platform         `json:"platform,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

type platform struct {
	Architecture string `json:"architecture"`
	OS           string `json:"os"`
}

// layout is an OCI image layout that is being written: a tar archive of blobs by digest.
type layout struct {
	tar  *tar.Writer
	seen map[string]bool
}

// write writes an archive that `ctr images import`, `docker load` (from version 25 on), `podman load` and `kind load image-archive` take. The
// same binaries give the same bytes.
func (s spec) write(w io.Writer, binaries ...string) error {
	l := layout{tar: tar.NewWriter(w), seen: map[string]bool{}}
	var manifests []descriptor
	for _, binary := range binaries {
		m, err := s.manifest(&l, binary)
		if err != nil {
			return fmt.Errorf("%s: %w", binary, err)
		}
		manifests = append(manifests, m)
	}
	top := manifests[0]
	if len(manifests) > 1 {
		var err error
		if top, err = l.json(mediaIndex, index(manifests...)); err != nil {
			return err
		}
	}
	_, tag, _ := strings.Cut(path.Base(s.name), ":")
	top.Annotations = map[string]string{"io.containerd.image.name": s.name, "org.opencontainers.image.ref.name": tag}
	content, err := json.Marshal(index(top))
	if err != nil {
		return err
	}
	err = errors.Join(
		l.file("oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`)),
		l.file("index.json", content),
	)
	return errors.Join(err, l.tar.Close())
}

func index(manifests ...descriptor) any {
	return map[string]any{"schemaVersion": 2, "mediaType": mediaIndex, "manifests": manifests}
}

// manifest writes the image of one architecture, which the binary tells.
func (s spec) manifest(l *layout, binary string) (descriptor, error) {
	content, err := os.ReadFile(binary)
	if err != nil {
		return descriptor{}, err
	}
	arch, err := architecture(content)
	if err != nil {
		return descriptor{}, err
	}
	files, err := s.files(content)
	if err != nil {
		return descriptor{}, err
	}
	packed, err := pack(files)
	if err != nil {
		return descriptor{}, err
	}
	layer, err := l.blob(mediaLayer, packed)
	if err != nil {
		return descriptor{}, err
	}
	labels, created := labels(content)
	config := map[string]any{
		"architecture": arch, "os": "linux",
		"config": map[string]any{
			"Entrypoint": []string{s.path}, "User": fmt.Sprintf("%d:%d", s.user, s.user), "WorkingDir": "/", "Labels": labels,
			"Env": []string{"PATH=/", "SSL_CERT_FILE=" + rootsPath},
		},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{digest(files)}},
	}
	if created != "" {
		config["created"] = created
	}
	c, err := l.json(mediaConfig, config)
	if err != nil {
		return descriptor{}, err
	}
	m, err := l.json(mediaManifest, map[string]any{
		"schemaVersion": 2, "mediaType": mediaManifest, "config": c, "layers": []descriptor{layer},
	})
	m.Platform = &platform{Architecture: arch, OS: "linux"}
	return m, err
}

// rootsPath is where Go, and all else, looks for CA certificates.
const rootsPath = "/etc/ssl/certs/ca-certificates.crt"

// files gives the image's file system as a tar archive.
func (s spec) files(binary []byte) ([]byte, error) {
	var b bytes.Buffer
	t := tar.NewWriter(&b)
	put := func(name string, mode int64, content []byte) error {
		h := &tar.Header{Typeflag: tar.TypeReg, Name: strings.TrimPrefix(name, "/"), Mode: mode, Size: int64(len(content))}
		if strings.HasSuffix(name, "/") {
			h.Typeflag = tar.TypeDir
		}
		if err := t.WriteHeader(h); err != nil {
			return err
		}
		_, err := t.Write(content)
		return err
	}
	err := errors.Join(put("tmp/", 0o1777, nil), put("etc/", 0o755, nil),
		put("etc/passwd", 0o644, fmt.Appendf(nil, "root:x:0:0:root:/:/sbin/nologin\nnonroot:x:%d:%d:nonroot:/tmp:/sbin/nologin\n", s.user, s.user)),
		put("etc/group", 0o644, fmt.Appendf(nil, "root:x:0:\nnonroot:x:%d:\n", s.user)))
	if s.roots != "" {
		roots, read := os.ReadFile(s.roots)
		if read != nil {
			return nil, read
		}
		err = errors.Join(err, put("etc/ssl/", 0o755, nil), put("etc/ssl/certs/", 0o755, nil), put(rootsPath, 0o644, roots))
	}
	err = errors.Join(err, put(s.path, 0o755, binary), t.Close())
	return b.Bytes(), err
}

func pack(content []byte) ([]byte, error) {
	var b bytes.Buffer
	z, err := gzip.NewWriterLevel(&b, gzip.BestCompression)
	if err != nil {
		return nil, err
	}
	_, err = z.Write(content)
	err = errors.Join(err, z.Close())
	return b.Bytes(), err
}

// architecture tells by Go's name what the binary is for, and refuses one that an empty image can't run.
func architecture(binary []byte) (string, error) {
	f, err := elf.NewFile(bytes.NewReader(binary))
	if err != nil {
		return "", err
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return "", errNotStatic
		}
	}
	switch f.Machine {
	case elf.EM_X86_64:
		return "amd64", nil
	case elf.EM_AARCH64:
		return "arm64", nil
	default:
		return "", fmt.Errorf("no image is made for %v", f.Machine)
	}
}

// labels are what Go has noted in the binary, and the time of its commit.
func labels(binary []byte) (labels map[string]string, created string) {
	labels = map[string]string{
		"org.opencontainers.image.title":    "Mobula",
		"org.opencontainers.image.source":   "https://github.com/mobula-serve/mobula",
		"org.opencontainers.image.licenses": "Apache-2.0",
	}
	info, err := buildinfo.Read(bytes.NewReader(binary))
	if err != nil {
		return labels, ""
	}
	if v := info.Main.Version; v != "" && v != "(devel)" {
		labels["org.opencontainers.image.version"] = v
	}
	for _, setting := range info.Settings {
		switch setting.Key {
		case "vcs.revision":
			labels["org.opencontainers.image.revision"] = setting.Value
		case "vcs.time":
			created = setting.Value
			labels["org.opencontainers.image.created"] = created
		}
	}
	return labels, created
}

func (l *layout) json(media string, value any) (descriptor, error) {
	content, err := json.Marshal(value) // maps come sorted by key
	if err != nil {
		return descriptor{}, err
	}
	return l.blob(media, content)
}

func (l *layout) blob(media string, content []byte) (descriptor, error) {
	d := descriptor{MediaType: media, Digest: digest(content), Size: len(content)}
	if l.seen[d.Digest] {
		return d, nil
	}
	l.seen[d.Digest] = true
	return d, l.file("blobs/sha256/"+strings.TrimPrefix(d.Digest, "sha256:"), content)
}

func (l *layout) file(name string, content []byte) error {
	err := l.tar.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(content))})
	if err != nil {
		return err
	}
	_, err = l.tar.Write(content)
	return err
}

func digest(content []byte) string {
	sum := sha256.Sum256(content)
	return "sha256:" + hex.EncodeToString(sum[:])
}
