package fetch

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
)

// bucket is an origin of objects in S3, or in what speaks its protocol.
type bucket struct {
	bucket, key string
	client      *http.Client
	idle        time.Duration
}

type bucketContent struct {
	*bucket

	api     *minio.Core
	objects []minio.ObjectInfo
	folder  bool
	marks   stamp
	ctx     context.Context // of its requests, ended by close or when one of them stalls
	end     context.CancelCauseFunc
}

// connect makes a client as AWS's own tools would: credentials from the environment, the shared file or the machine's role, else
// none; another place than AWS from AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL.
func (b *bucket) connect() (*minio.Core, error) {
	endpoint := &url.URL{Scheme: "https", Host: "s3.amazonaws.com"}
	lookup := minio.BucketLookupAuto
	if own := cmp.Or(os.Getenv("AWS_ENDPOINT_URL_S3"), os.Getenv("AWS_ENDPOINT_URL")); own != "" {
		u, err := url.Parse(own)
		if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
			return nil, fmt.Errorf("%w: AWS_ENDPOINT_URL is no http or https URL", ErrSource)
		}
		endpoint, lookup = u, minio.BucketLookupPath
	}
	// Off AWS nobody answers for roles, and that must not take long.
	roles := &http.Client{Timeout: 2 * time.Second}
	api, err := minio.NewCore(endpoint.Host, &minio.Options{
		Creds: credentials.NewChainCredentials([]credentials.Provider{
			&credentials.EnvAWS{}, &credentials.FileAWSCredentials{}, &credentials.IAM{Client: roles},
		}),
		Secure:       endpoint.Scheme == "https",
		Transport:    b.client.Transport,
		Region:       cmp.Or(os.Getenv("AWS_REGION"), os.Getenv("AWS_DEFAULT_REGION")),
		BucketLookup: lookup,
		MaxRetries:   3,
	})
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrSource, err)
	}
	return api, nil
}

func (b *bucket) open(ctx context.Context, known stamp) (_ content, err error) {
	api, err := b.connect()
	if err != nil {
		return nil, err
	}
	ctx, end := context.WithCancelCause(ctx)
	c := &bucketContent{bucket: b, api: api, ctx: ctx, end: end}
	defer func() {
		if err != nil {
			end(nil)
		}
	}()
	watch := time.AfterFunc(b.idle, func() { end(stalled(b.idle)) })
	defer watch.Stop()
	if err := c.find(watch); err != nil {
		return nil, b.explain(ctx, err)
	}
	all := sha256.New()
	for _, o := range c.objects {
		fmt.Fprintf(all, "%q %q %d\n", o.Key, o.ETag, o.Size)
	}
	c.marks = stamp{ETag: hex.EncodeToString(all.Sum(nil))}
	if c.marks == known {
		end(nil)
		return nil, nil
	}
	return c, nil
}

// find lists what is to be fetched: the object of that key if it is an archive, else those under it, else the one of it.
func (c *bucketContent) find(watch *time.Timer) error {
	if kindOf(c.key) == plain {
		prefix := c.key + "/"
		if c.key == "" {
			prefix = ""
		}
		for o := range c.api.ListObjectsIter(c.ctx, c.bucket.bucket, minio.ListObjectsOptions{Prefix: prefix, Recursive: true}) {
			if o.Err != nil {
				return o.Err
			}
			watch.Reset(c.idle)
			if !strings.HasSuffix(o.Key, "/") { // what consoles make to show a folder
				c.objects = append(c.objects, o)
			}
			if len(c.objects) > defaultMaxFiles {
				return fmt.Errorf("%w: more than %d objects", ErrTooLarge, defaultMaxFiles)
			}
		}
		if len(c.objects) > 0 {
			c.folder = true
			return nil
		}
		if c.key == "" {
			return fmt.Errorf("%w: the bucket is empty", ErrNotFound)
		}
	}
	o, err := c.api.StatObject(c.ctx, c.bucket.bucket, c.key, minio.StatObjectOptions{})
	if err != nil {
		return err
	}
	o.Key = c.key
	c.objects = []minio.ObjectInfo{o}
	return nil
}

// explain says what S3's codes mean.
func (b *bucket) explain(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	if errors.Is(err, ErrTooLarge) || errors.Is(err, ErrNotFound) {
		return err
	}
	switch answer := minio.ToErrorResponse(err); {
	case answer.Code == minio.PreconditionFailed:
		return fmt.Errorf("%w: an object of bucket %q has changed while it was fetched: try again", ErrUnavailable, b.bucket)
	case answer.Code == minio.NoSuchBucket:
		return fmt.Errorf("%w: there is no bucket %q", ErrNotFound, b.bucket)
	case answer.Code == minio.NoSuchKey || answer.StatusCode == http.StatusNotFound:
		return fmt.Errorf("%w: the bucket %q has nothing at %q", ErrNotFound, b.bucket, b.key)
	case answer.StatusCode == http.StatusForbidden || answer.StatusCode == http.StatusUnauthorized:
		return fmt.Errorf("%w: S3 says %s: are AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY set for the agent, and may they read bucket %q?", ErrForbidden, answer.Code, b.bucket)
	}
	return unavailable(ctx, err)
}

func (c *bucketContent) stamp() stamp { return c.marks }

func (c *bucketContent) save(ctx context.Context, into *folder) error {
	for _, o := range c.objects {
		if err := c.saveObject(ctx, o, into); err != nil {
			return err
		}
	}
	return nil
}

func (c *bucketContent) saveObject(ctx context.Context, o minio.ObjectInfo, into *folder) error {
	watch := time.AfterFunc(c.idle, func() { c.end(stalled(c.idle)) })
	object, _, _, err := c.get(o)
	watch.Stop()
	if err != nil {
		return c.explain(c.ctx, err)
	}
	defer object.Close()
	body := &watched{from: object, idle: c.idle, ctx: c.ctx, end: c.end}
	if !c.folder {
		return saveOne(ctx, o.Key, body, into)
	}
	source := &failing{from: body}
	err = into.file(strings.TrimPrefix(strings.TrimPrefix(o.Key, c.key), "/"), source)
	if source.err != nil && !errors.Is(source.err, io.EOF) {
		err = fmt.Errorf("%w: it broke off: %w", ErrUnavailable, source.err)
	}
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// get asks for an object as it was when it was listed.
func (c *bucketContent) get(o minio.ObjectInfo) (io.ReadCloser, minio.ObjectInfo, http.Header, error) {
	var opts minio.GetObjectOptions
	if o.ETag != "" {
		if err := opts.SetMatchETag(o.ETag); err != nil {
			return nil, o, nil, err
		}
	}
	return c.api.GetObject(c.ctx, c.bucket.bucket, o.Key, opts)
}

func (c *bucketContent) close() { c.end(nil) }
