package pick

import (
	"math"
	"time"

	"github.com/mobula-serve/mobula/kv"
)

// engines is what cost and prefix know of each engine, with the index of what it holds. Its
// owner's lock guards it.
type engines struct {
	index *kv.Index
	byID  map[string]*engine
	// groups are the engines of a group in its order, so that a request looks up one key.
	groups map[*Group][]*engine
	// blockTokens is how many tokens a block has: learned, for capacities come in tokens.
	blockTokens float64
	applied     float64 // blockTokens when capacities were set last
	view        []kv.Holding
}

// engine is one of them. A ticket may outlive it: then it is gone, and all that a ticket
// does to it is lost with it.
type engine struct {
	url         string // an engine at another one is another one
	slot        kv.Engine
	cacheTokens int
	gone        bool
	answer      float64 // tokens of answers not yet filled in as blocks
	load        load    // of cost
}

const (
	maxBlocks = 4096 // of a prompt that are looked at, 4 MiB: about a million tokens
	maxGroups = 4096 // remembered between two snapshots

	blockTokensPrior = 256  // four bytes a token, as English is with most tokenizers
	blockTokensMin   = 16   // images and audio as base64 have many bytes a token
	blockTokensMax   = 1024 // one byte a token
	blockTokensGain  = 0.05 // weight of the latest prompt
	blockTokensDrift = 0.1  // a change this large sets capacities anew
)

func newEngines(memory int64) engines {
	return engines{
		index:  kv.NewIndex(memory),
		byID:   map[string]*engine{},
		groups: map[*Group][]*engine{},

		blockTokens: blockTokensPrior,
		applied:     blockTokensPrior,
	}
}

// of gives the engines of g's endpoints, in order.
func (s *engines) of(g *Group) []*engine {
	list := s.groups[g]
	if len(list) == len(g.Endpoints) {
		return list
	}
	if len(s.groups) >= maxGroups {
		clear(s.groups)
	}
	list = make([]*engine, len(g.Endpoints))
	for i, e := range g.Endpoints {
		list[i] = s.get(e)
	}
	s.groups[g] = list
	return list
}

func (s *engines) get(e *Endpoint) *engine {
	n := s.byID[e.ID]
	if n == nil {
		n = &engine{url: e.URL, cacheTokens: e.CacheTokens, load: load{speed: 1}}
		n.slot = s.index.Add(s.capacity(n))
		s.byID[e.ID] = n
	}
	return n
}

// capacity is an engine's cache in blocks, 0 for not known.
func (s *engines) capacity(n *engine) int {
	if n.cacheTokens <= 0 {
		return 0
	}
	return max(1, int(float64(n.cacheTokens)/s.blockTokens))
}

// keep forgets the engines that are not in the snapshot, or are elsewhere, and takes over new capacities.
func (s *engines) keep(snapshot *Snapshot) {
	present := make(map[string]*engine, len(snapshot.Endpoints))
	for _, e := range snapshot.Endpoints {
		if e.Provider != nil {
			continue
		}
		if n := s.byID[e.ID]; n != nil && n.url != e.URL {
			s.remove(n)
			delete(s.byID, e.ID)
		}
		n := s.get(e)
		present[e.ID] = n
		if n.cacheTokens != e.CacheTokens {
			n.cacheTokens = e.CacheTokens
			s.index.Resize(n.slot, s.capacity(n))
		}
	}
	for id, n := range s.byID {
		if present[id] == nil {
			s.remove(n)
		}
	}
	s.byID = present
	clear(s.groups)
	for _, g := range snapshot.Models() {
		if len(g.Endpoints) > 0 {
			s.of(g)
		}
	}
}

func (s *engines) remove(n *engine) {
	n.gone = true
	s.index.Remove(n.slot)
}

// match tells what each engine holds of r's prompt; indexed by slot.
func (s *engines) match(r *Request) []kv.Holding {
	s.view = s.index.Match(head(r.Blocks), s.view)
	return s.view
}

// head is the part of a prompt's blocks that is looked at.
func head(blocks []uint64) []uint64 { return blocks[:min(len(blocks), maxBlocks)] }

// insert notes that n gets these blocks, and tells how many leading ones it held.
func (s *engines) insert(n *engine, blocks []uint64) int {
	if n.gone || len(blocks) == 0 {
		return 0
	}
	return s.index.Insert(n.slot, head(blocks))
}

// drop takes back the blocks after the first held ones.
func (s *engines) drop(n *engine, blocks []uint64, held int) {
	if blocks = head(blocks); !n.gone && held < len(blocks) {
		s.index.Drop(n.slot, blocks[held:])
	}
}

// forget empties n, whose engine lost its cache, but for the blocks that it computed just now.
func (s *engines) forget(n *engine, blocks []uint64) {
	if n.gone {
		return
	}
	s.index.Remove(n.slot)
	n.slot = s.index.Add(s.capacity(n))
	s.insert(n, blocks)
}

// learn takes from a whole answer how many tokens a block has and what room the answer took.
func (s *engines) learn(n *engine, blocks []uint64, o Outcome) {
	if len(blocks) >= 4 && o.Prompt > 0 { // in fewer, the part after the last block counts too much
		tokens := float64(o.Prompt) / (float64(len(blocks)) + 0.5)
		s.blockTokens += blockTokensGain * (min(max(tokens, blockTokensMin), blockTokensMax) - s.blockTokens)
		if math.Abs(s.blockTokens/s.applied-1) > blockTokensDrift {
			s.applied = s.blockTokens
			for _, n := range s.byID {
				s.index.Resize(n.slot, s.capacity(n))
			}
		}
	}
	if n.gone || n.cacheTokens <= 0 {
		return
	}
	n.answer += float64(max(0, o.Completion))
	if fill := int(n.answer / s.blockTokens); fill > 0 {
		n.answer -= float64(fill) * s.blockTokens
		s.index.Fill(n.slot, fill)
	}
}

// cached is how many of r's tokens the first held blocks stand for; the last token is always
// computed.
func cached(r *Request, held int) int {
	if held == 0 {
		return 0
	}
	// Half a block on average comes after the last whole one.
	share := float64(held) / (float64(len(r.Blocks)) + 0.5)
	return min(int(share*float64(r.Tokens)), r.Tokens-1)
}

// fade is about exp(-since/span), by its first terms: a product of fades over short times is
// the fade over their sum, near enough, and it never ends below 0.
func fade(since, span time.Duration) float64 {
	x := max(0, float64(since)/float64(span))
	return 1 / (1 + x + x*x/2)
}
