package sim

import (
	"cmp"
	"encoding/base64"
	"encoding/binary"
	"math"
	"net/http"
	"slices"
	"time"

	"github.com/tidwall/gjson"
)

// maxDimensions bounds the vectors that a request can ask for.
const maxDimensions = 8192

// pooled is a checked request to a pooling engine, computed.
type pooled struct {
	name    string
	inputs  [][]int32
	tokens  int
	vectors [][]float32
}

// pool computes the vectors of inputs, one after the other.
func (c *call) pool(name, lora string, inputs [][]int32, dims int) (*pooled, error) {
	out := &pooled{name: name, inputs: inputs}
	sp := &sampling{max: 1, logprobs: noLogprobs}
	for _, ids := range inputs {
		in := input{ids: ids, lora: lora}
		if err := c.e.checkLength(&in, true); err != nil {
			return nil, err
		}
		if err := c.midway(0); err != nil {
			return nil, err
		}
		if err := c.e.encodeOnly(c, c.e.newSeq(&in, sp, 0, nil)); err != nil {
			return nil, err
		}
		out.tokens += len(ids)
		out.vectors = append(out.vectors, embed(ids, dims))
	}
	return out, nil
}

// encodeOnly spends the time of a prefill.
func (e *Engine) encodeOnly(c *call, s *seq) (err error) {
	arrived := time.Now()
	e.metrics.requests.Add(1)
	defer func() { e.metrics.done(s, arrived, time.Time{}, err) }()
	defer e.sched.stop(s)
	if err := e.sched.start(c.context(), s); err != nil {
		return err
	}
	s.finish = "stop"
	e.metrics.admitted(s)
	return nil
}

// embed is the vector of a text: the sum of its tokens' vectors, so that texts which share
// words are near each other; length 1.
func embed(ids []int32, dims int) []float32 {
	sum := make([]float64, dims)
	for _, id := range ids {
		h := chain(start, uint64(id))
		for d := range sum {
			h = chain(h, uint64(d))
			sum[d] += float64(int64(scramble(h))>>40) / (1 << 23)
		}
	}
	var norm float64
	for _, x := range sum {
		norm += x * x
	}
	norm = math.Sqrt(norm)
	out := make([]float32, dims)
	for d, x := range sum {
		out[d] = float32(x / max(norm, 1e-9))
	}
	return out
}

func cosine(a, b []float32) float64 {
	var sum float64
	for i := range a {
		sum += float64(a[i]) * float64(b[i])
	}
	return sum
}

// poolRequest reads what all pooling routes share.
func (c *call) poolRequest() (p *params, name, lora string, err *apiError) {
	if p, err = c.params(); err != nil {
		return nil, "", "", err
	}
	name, lora, err = c.model(p)
	return p, name, lora, err
}

// inputs reads "input", or "messages" as the chat forms of the pooling routes have it.
func (c *call) inputs(p *params) ([][]int32, *apiError) {
	if list, ok := p.get("messages"); ok && list.IsArray() {
		talk, err := c.conversation(list)
		return [][]int32{c.e.template(talk, false, false)}, err
	}
	if _, ok := p.get("input"); !ok {
		p.missing("input")
		return nil, p.bad.err()
	}
	ids, _, err := c.e.prompts(p, "input")
	return ids, err
}

func appendVector(dst []byte, v []float32, base64Form bool) []byte {
	if base64Form {
		raw := make([]byte, 0, 4*len(v))
		for _, x := range v {
			raw = binary.LittleEndian.AppendUint32(raw, math.Float32bits(x))
		}
		dst = append(dst, '"')
		dst = base64.StdEncoding.AppendEncode(dst, raw)
		return append(dst, '"')
	}
	dst = append(dst, '[')
	for i, x := range v {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = appendFloat(dst, float64(x))
	}
	return append(dst, ']')
}

func (c *call) appendListHead(prefix, name string) []byte {
	dst := appendString([]byte(`{"id":`), c.id(prefix))
	dst = appendInt(append(dst, `,"object":"list","created":`...), time.Now().Unix())
	dst = appendString(append(dst, `,"model":`...), name)
	return append(dst, `,"data":[`...)
}

func appendListEnd(dst []byte, tokens int) []byte {
	u := usage{prompt: tokens}
	return append(u.appendCounts(append(dst, `],"usage":`...)), `,"prompt_tokens_details":null,"completion_tokens_details":null}}`...)
}

// embeddings serves /v1/embeddings.
func (c *call) embeddings() { c.vectors("embd-", "embedding", "embedding") }

// pooling serves /pooling.
func (c *call) pooling() { c.vectors("pooling-", "pooling", "data") }

func (c *call) vectors(prefix, object, field string) {
	p, name, lora, err := c.poolRequest()
	if err != nil {
		c.fail(err)
		return
	}
	dims := c.e.opts.Dimensions
	if n, ok := p.int("dimensions"); ok {
		if n < 1 || n > maxDimensions {
			c.fail(badRequest("dimensions", "dimensions must be from 1 to %d, got %d.", maxDimensions, n))
			return
		}
		dims = n
	}
	format := p.string("encoding_format")
	inputs, err := c.inputs(p)
	if err == nil {
		err = p.bad.err()
	}
	if err != nil {
		c.fail(err)
		return
	}
	got, failed := c.pool(name, lora, inputs, dims)
	if failed != nil {
		c.fail(failed)
		return
	}
	dst := c.appendListHead(prefix, name)
	for i, v := range got.vectors {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = appendInt(append(dst, `{"index":`...), i)
		dst = appendString(append(dst, `,"object":`...), object)
		dst = append(append(append(dst, `,"`...), field...), `":`...)
		dst = append(appendVector(dst, v, format == "base64"), '}')
	}
	c.json(http.StatusOK, appendListEnd(dst, got.tokens))
}

// texts reads a string, a list of strings, or objects with a text, from the first field given.
func (c *call) texts(p *params, fields ...string) ([]string, *apiError) {
	for _, field := range fields {
		v, ok := p.get(field)
		if !ok {
			continue
		}
		if !v.IsArray() {
			v = gjson.Parse("[" + v.Raw + "]")
		}
		var out []string
		v.ForEach(func(_, t gjson.Result) bool {
			if text := t.Get("text"); t.IsObject() && text.Exists() {
				t = text
			}
			out = append(out, t.String())
			return len(out) < maxChoices
		})
		return out, nil
	}
	p.missing(fields[0])
	return nil, p.bad.err()
}

// compare embeds queries and documents and scores them: one to many, or pair by pair.
func (c *call) compare(name, lora string, queries, documents []string) (scores []float64, tokens int, err error) {
	if len(queries) == 0 || len(documents) == 0 || len(queries) != 1 && len(queries) != len(documents) {
		return nil, 0, badRequest("", "Input lengths must be either 1:1, 1:N or N:N")
	}
	limit := c.e.opts.MaxModelLen + 1
	var inputs [][]int32
	for _, text := range append(slices.Clone(queries), documents...) {
		inputs = append(inputs, c.e.tok.encode(nil, text, limit))
	}
	got, err := c.pool(name, lora, inputs, c.e.opts.Dimensions)
	if err != nil {
		return nil, 0, err
	}
	for i := range documents {
		scores = append(scores, cosine(got.vectors[i%len(queries)], got.vectors[len(queries)+i]))
	}
	return scores, got.tokens, nil
}

// score serves /score.
func (c *call) score() {
	p, name, lora, err := c.poolRequest()
	if err != nil {
		c.fail(err)
		return
	}
	queries, err := c.texts(p, "text_1", "queries", "query")
	if err != nil {
		c.fail(err)
		return
	}
	documents, err := c.texts(p, "text_2", "documents", "items")
	if err != nil {
		c.fail(err)
		return
	}
	scores, tokens, failed := c.compare(name, lora, queries, documents)
	if failed != nil {
		c.fail(failed)
		return
	}
	dst := c.appendListHead("score-", name)
	for i, x := range scores {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = appendInt(append(dst, `{"index":`...), i)
		dst = append(appendFloat(append(dst, `,"object":"score","score":`...), x), '}')
	}
	c.json(http.StatusOK, appendListEnd(dst, tokens))
}

// rerank serves /rerank.
func (c *call) rerank() {
	p, name, lora, err := c.poolRequest()
	if err != nil {
		c.fail(err)
		return
	}
	query, err := c.texts(p, "query")
	if err != nil {
		c.fail(err)
		return
	}
	documents, err := c.texts(p, "documents")
	if err != nil {
		c.fail(err)
		return
	}
	top, limited := p.int("top_n")
	scores, tokens, failed := c.compare(name, lora, query[:min(1, len(query))], documents)
	if failed != nil {
		c.fail(failed)
		return
	}
	order := make([]int, len(scores))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(scores[b], scores[a]) })
	if limited && top > 0 {
		order = order[:min(top, len(order))]
	}
	dst := appendString([]byte(`{"id":`), c.id("score-"))
	dst = appendString(append(dst, `,"model":`...), name)
	dst = appendInt(append(dst, `,"usage":{"prompt_tokens":`...), tokens)
	dst = appendInt(append(dst, `,"total_tokens":`...), tokens)
	dst = append(dst, `},"results":[`...)
	for n, i := range order {
		if n > 0 {
			dst = append(dst, ',')
		}
		dst = appendInt(append(dst, `{"index":`...), i)
		dst = appendString(append(dst, `,"document":{"text":`...), documents[i])
		dst = appendFloat(append(dst, `,"multi_modal":null},"relevance_score":`...), scores[i])
		dst = append(dst, '}')
	}
	c.json(http.StatusOK, append(dst, "]}"...))
}

// classify serves /classify.
func (c *call) classify() {
	p, name, lora, err := c.poolRequest()
	if err != nil {
		c.fail(err)
		return
	}
	inputs, err := c.inputs(p)
	if err != nil {
		c.fail(err)
		return
	}
	got, failed := c.pool(name, lora, inputs, 1)
	if failed != nil {
		c.fail(failed)
		return
	}
	dst := c.appendListHead("classify-", name)
	for i, ids := range got.inputs {
		if i > 0 {
			dst = append(dst, ',')
		}
		yes := 1 / (1 + math.Exp(-float64(embed(ids, 2)[0])))
		label := "LABEL_0"
		if yes > 0.5 {
			label = "LABEL_1"
		}
		dst = appendInt(append(dst, `{"index":`...), i)
		dst = appendString(append(dst, `,"label":`...), label)
		dst = appendFloat(append(dst, `,"probs":[`...), 1-yes)
		dst = append(appendFloat(append(dst, ','), yes), `],"num_classes":2}`...)
	}
	c.json(http.StatusOK, appendListEnd(dst, got.tokens))
}
