package sim

import (
	"slices"
	"strings"
	"unicode/utf8"
)

// Token ids, in order: specials, single bytes, pairs of bytes, four lower-case letters, a
// space with three, numbers of two and three digits, words, role names.
const (
	idEndOfText int32 = 0
	idTurn      int32 = 1 // opens a turn: role, newline, text
	idTurnEnd   int32 = 2 // ends it; the model's end-of-sequence token

	firstByte   int32 = 16
	firstPair         = firstByte + 256
	firstQuad         = firstPair + 256*256
	firstTriple       = firstQuad + 26*26*26*26
	firstNum2         = firstTriple + 26*26*26
	firstNum3         = firstNum2 + 100
	firstWord         = firstNum3 + 1000
)

// Forms of a word, each with an id of its own.
const (
	formInner = iota // " word"
	formFirst        // "Word"
	formStart        // " Word"
	forms
)

// tokenizer turns text into ids and back. It is immutable, the same in every engine, and
// loses nothing: decoding what it encoded gives the same bytes, whatever they are.
type tokenizer struct {
	ids   map[string]int32
	texts []string // of ids from firstWord on
	words int32
}

func newTokenizer() *tokenizer {
	words := strings.Fields(wordList)
	slices.Sort(words)
	words = slices.Compact(words)
	t := &tokenizer{ids: make(map[string]int32, forms*len(words)+8), words: int32(len(words))}
	add := func(s string) {
		t.ids[s] = firstWord + int32(len(t.texts))
		t.texts = append(t.texts, s)
	}
	for _, w := range words {
		add(" " + w)
	}
	for _, w := range words {
		add(strings.ToUpper(w[:1]) + w[1:])
	}
	for _, w := range words {
		add(" " + strings.ToUpper(w[:1]) + w[1:])
	}
	for _, w := range append(words, "system", "user", "assistant", "tool", "developer") {
		add(w) // as code has them, and role names
	}
	return t
}

// size is the number of ids.
func (t *tokenizer) size() int { return int(firstWord) + len(t.texts) }

// word is the id of the n-th word in a form.
func (t *tokenizer) word(form, n int32) int32 { return firstWord + form*t.words + n }

// isWord tells whether id is a word in any form.
func (t *tokenizer) isWord(id int32) bool { return id >= firstWord && id < firstWord+forms*t.words }

// encode appends the ids of s, at most limit of them in all, and so costs no more than that.
func (t *tokenizer) encode(dst []int32, s string, limit int) []int32 {
	dst = slices.Grow(dst, max(0, min(limit-len(dst), len(s)/4+4)))
	for i := 0; i < len(s) && len(dst) < limit; {
		j := i + 1
		switch c := s[i]; {
		case isLetter(c), c == ' ' && j < len(s) && isLetter(s[j]):
			for j < len(s) && isLetter(s[j]) {
				j++
			}
			if id, ok := t.ids[s[i:j]]; ok {
				dst = append(dst, id)
			} else {
				dst = encodePieces(dst, s[i:j])
			}
		case isDigit(c):
			for j < len(s) && j < i+3 && isDigit(s[j]) {
				j++
			}
			dst = append(dst, number(s[i:j]))
		case c >= utf8.RuneSelf:
			for j < len(s) && j < i+utf8.UTFMax && s[j]&0xc0 == 0x80 {
				j++
			}
			dst = encodePairs(dst, s[i:j])
		case (c == ' ' || c == '\n' || c == '\t') && j < len(s) && s[j] == c && (j+1 == len(s) || !isLetter(s[j+1])):
			j++
			dst = append(dst, pair(c, c))
		default:
			dst = append(dst, firstByte+int32(c))
		}
		i = j
	}
	return dst[:min(len(dst), max(limit, 0))]
}

// append adds the text of one id to dst; specials are shown only when asked for.
func (t *tokenizer) append(dst []byte, id int32, specials bool) []byte {
	switch {
	case id >= firstWord && int(id-firstWord) < len(t.texts):
		return append(dst, t.texts[id-firstWord]...)
	case id >= firstWord:
		return dst
	case id >= firstNum3:
		n := id - firstNum3
		return append(dst, '0'+byte(n/100), '0'+byte(n/10%10), '0'+byte(n%10))
	case id >= firstNum2:
		n := id - firstNum2
		return append(dst, '0'+byte(n/10), '0'+byte(n%10))
	case id >= firstTriple:
		n := id - firstTriple
		return append(dst, ' ', 'a'+byte(n/676), 'a'+byte(n/26%26), 'a'+byte(n%26))
	case id >= firstQuad:
		n := id - firstQuad
		return append(dst, 'a'+byte(n/17576), 'a'+byte(n/676%26), 'a'+byte(n/26%26), 'a'+byte(n%26))
	case id >= firstPair:
		n := id - firstPair
		return append(dst, byte(n>>8), byte(n))
	case id >= firstByte:
		return append(dst, byte(id-firstByte))
	case !specials:
		return dst
	case id == idTurn:
		return append(dst, "<|im_start|>"...)
	case id == idTurnEnd:
		return append(dst, "<|im_end|>"...)
	case id == idEndOfText:
		return append(dst, "<|endoftext|>"...)
	}
	return dst
}

// decode gives the text of ids.
func (t *tokenizer) decode(ids []int32, specials bool) string {
	var b []byte
	for _, id := range ids {
		b = t.append(b, id, specials)
	}
	return string(b)
}

// encodePieces cuts a word that has no id of its own.
func encodePieces(dst []int32, s string) []int32 {
	if len(s) >= 4 && s[0] == ' ' && isLower(s[1:4]) {
		dst = append(dst, firstTriple+letters(s[1:4]))
		s = s[4:]
	}
	for len(s) >= 4 && isLower(s[:4]) {
		dst = append(dst, firstQuad+letters(s[:4]))
		s = s[4:]
	}
	return encodePairs(dst, s)
}

func encodePairs(dst []int32, s string) []int32 {
	for ; len(s) >= 2; s = s[2:] {
		dst = append(dst, pair(s[0], s[1]))
	}
	if s != "" {
		dst = append(dst, firstByte+int32(s[0]))
	}
	return dst
}

func pair(a, b byte) int32 { return firstPair + int32(a)<<8 + int32(b) }

func number(s string) int32 {
	var n int32
	for i := range len(s) {
		n = n*10 + int32(s[i]-'0')
	}
	switch len(s) {
	case 2:
		return firstNum2 + n
	case 3:
		return firstNum3 + n
	}
	return firstByte + int32(s[0])
}

func letters(s string) int32 {
	var n int32
	for i := range len(s) {
		n = n*26 + int32(s[i]-'a')
	}
	return n
}

func isLetter(c byte) bool { return 'a' <= c|0x20 && c|0x20 <= 'z' }
func isDigit(c byte) bool  { return '0' <= c && c <= '9' }

func isLower(s string) bool {
	for i := range len(s) {
		if s[i] < 'a' || s[i] > 'z' {
			return false
		}
	}
	return true
}
