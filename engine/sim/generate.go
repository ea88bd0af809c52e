package sim

import (
	"bytes"
	"strconv"
	"time"
	"unicode/utf8"
)

// The model: the next token is a function of all tokens so far and the sampling key, so that
// whoever continues from the same ids, on any engine, gets the same rest.

// start is where every chain of hashes begins.
const start uint64 = 0x6d6f62756c61 // "mobula"

// chain adds one value to a hash over a sequence.
func chain(h, v uint64) uint64 {
	h = (h ^ v) * 0x9e3779b97f4a7c15
	return h ^ h>>29
}

// scramble spreads h so that its low bits can be used.
func scramble(h uint64) uint64 {
	h = (h ^ h>>30) * 0xbf58476d1ce4e5b9
	h = (h ^ h>>27) * 0x94d049bb133111eb
	return h ^ h>>31
}

// generator makes up an answer, token by token.
type generator struct {
	tok       *tokenizer
	key       uint64  // what the model and the sampling parameters add
	script    []int32 // an answer fixed beforehand (tool calls, JSON); nil makes one up
	said      int     // of the script
	min, max  int     // tokens of an assistant's turn
	ignoreEOS bool

	h    uint64 // over all tokens
	last int32
	turn int // tokens since the last turn was opened, -1 outside of a turn
	end  int // turn at which the turn ends
}

// feed takes up a prompt.
func (g *generator) feed(ids []int32) {
	g.h, g.last, g.turn = start, idEndOfText, -1
	for _, id := range ids {
		g.push(id)
	}
}

// push takes up one token.
func (g *generator) push(id int32) {
	g.h, g.last = chain(g.h, uint64(id)), id
	switch {
	case id == idTurn:
		const header = 2 // the role and a newline
		g.turn = 0
		g.end = header + g.min + int(scramble(chain(g.h, g.key))%uint64(g.max-g.min+1))
	case id == idTurnEnd:
		g.turn = -1
	case g.turn >= 0:
		g.turn++
	}
}

// next chooses a token and takes it up. A turn ends at a length that the hash at its
// beginning sets; text outside of a turn has no end of its own.
func (g *generator) next(mayEnd bool) int32 {
	id := g.choose(mayEnd && !g.ignoreEOS)
	g.push(id)
	return id
}

// A fish is four bytes in two tokens: now and then a character comes in halves, as it does
// from a real engine. Its second half is one of tails.
var fishHead = pair(0xf0, 0x9f)

func (g *generator) choose(mayEnd bool) int32 {
	if g.script != nil {
		if g.said < len(g.script) {
			g.said++
			return g.script[g.said-1]
		}
		return idTurnEnd
	}
	r := scramble(chain(g.h, g.key))
	word := int32(r >> 32 % uint64(g.tok.words))
	switch dot, comma := firstByte+'.', firstByte+','; {
	case g.last == fishHead:
		tails := [...]int32{pair(0x90, 0x9f), pair(0x90, 0xa0), pair(0x90, 0xa1), pair(0x90, 0xb3)}
		return tails[r%4]
	case mayEnd && g.turn >= g.end:
		return idTurnEnd
	case g.last == firstByte+'\n' || g.last < firstByte:
		return g.tok.word(formFirst, word)
	case g.last == dot:
		return g.tok.word(formStart, word)
	case !g.tok.isWord(g.last):
		return g.tok.word(formInner, word)
	case r%12 == 0:
		return dot
	case r%20 == 1:
		return comma
	case r%128 == 2 && g.turn+1 != g.end: // there has to be room for its second half
		return fishHead
	}
	return g.tok.word(formInner, word)
}

// step is what one token adds to an answer.
type step struct {
	id     int32
	text   []byte // newly certain text; valid during the call that gets the step
	finish string // why the answer ends here, "" when it goes on
	stop   string // JSON of stop_reason
	before int    // bytes of the text before this token, held ones included
}

// seq is one choice of an answer on its way.
type seq struct {
	index    int
	lora     string
	prompt   []int32
	sampling *sampling
	limit    int // tokens to generate at most
	gen      generator

	out    []int32
	text   []byte // all of the answer's text that is certain
	held   []byte // an unfinished character, or what may become a stop string
	finish string
	stop   string // JSON
	maxLen int    // of the stop strings
	leak   bool   // the prompt ended within a character

	cached, created int // prompt tokens found in the cache, and entered into it
	waited          time.Duration

	kv kvState
}

// begin readies s for its first token.
func (s *seq) begin(tok *tokenizer) {
	s.gen.tok = tok
	s.gen.feed(s.prompt)
	s.stop = "null"
	for _, stop := range s.sampling.stop {
		s.maxLen = max(s.maxLen, len(stop))
	}
	var tail []byte
	for _, id := range s.prompt[max(0, len(s.prompt)-2):] {
		tail = tok.append(tail, id, false)
	}
	if n := completeLen(tail); n < len(tail) {
		s.leak = true
		s.held = append(s.held, tail[n:]...)
	}
}

// next generates one token and says in st what it adds.
func (s *seq) next(st *step) {
	mayEnd := len(s.out) >= s.sampling.minTokens
	id := s.gen.next(mayEnd)
	s.out = append(s.out, id)
	*st = step{id: id, before: len(s.text) + len(s.held)}
	released := len(s.text)
	switch {
	case id == idTurnEnd && !s.gen.ignoreEOS:
		s.finish = "stop"
	case mayEnd && s.sampling.stopsAt(id):
		s.finish, s.stop = "stop", strconv.Itoa(int(id))
	default:
		s.held = s.gen.tok.append(s.held, id, !s.sampling.skipSpecials)
		if mayEnd {
			s.cutAtStop()
		}
		if s.finish == "" && len(s.out) >= s.limit {
			s.finish = "length"
		}
	}
	keep := 0
	if s.finish == "" {
		keep = max(0, s.maxLen-1)
	}
	s.release(keep)
	st.text, st.finish, st.stop = s.text[released:], s.finish, s.stop
}

// abort ends the answer before its time.
func (s *seq) abort(st *step) {
	s.finish = "abort"
	released := len(s.text)
	s.release(0)
	*st = step{id: -1, text: s.text[released:], finish: s.finish, stop: s.stop}
}

func (s *seq) cutAtStop() {
	at, found := -1, ""
	for _, stop := range s.sampling.stop {
		if i := bytes.Index(s.held, []byte(stop)); stop != "" && i >= 0 && (at < 0 || i < at) {
			at, found = i, stop
		}
	}
	if at < 0 {
		return
	}
	if s.sampling.includeStop {
		at += len(found)
	}
	s.held = s.held[:at]
	s.finish, s.stop = "stop", string(appendString(nil, found))
}

// release moves held text to the certain text but for its last keep bytes and an unfinished character.
func (s *seq) release(keep int) {
	n := completeLen(s.held[:max(0, len(s.held)-keep)])
	if n == 0 {
		return
	}
	if s.leak {
		// vLLM 0.32 repeats the whole prompt when it ended within a character; so does this.
		s.leak = false
		for _, id := range s.prompt {
			s.text = s.gen.tok.append(s.text, id, false)
		}
		s.text = s.text[:completeLen(s.text)]
	}
	s.text = append(s.text, s.held[:n]...)
	s.held = s.held[:copy(s.held, s.held[n:])]
}

// completeLen is the length of b without an unfinished character at its end.
func completeLen(b []byte) int {
	for i := len(b) - 1; i >= max(0, len(b)-utf8.UTFMax+1); i-- {
		if utf8.RuneStart(b[i]) {
			if !utf8.FullRune(b[i:]) {
				return i
			}
			break
		}
	}
	return len(b)
}

// logprob is a made-up log probability for a token after h.
func logprob(h uint64, id int32) float64 {
	return -float64(scramble(chain(h, uint64(id)))%8000)/1000 - 0.001
}
