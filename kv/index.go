package kv

import (
	"math"
	"math/bits"
	"slices"
	"sync"
)

// DefaultMemory is the memory of an Index unless said otherwise, 64 MiB: about 2.4 million
// blocks.
const DefaultMemory = 64 << 20

const (
	minMemory  = 64 << 10 // an index smaller than this would hold not even one long prompt
	nodeBytes  = 24       // sizeof(node)
	chunkNodes = 1 << 10  // nodes allocated at a time
	ghostShare = 16       // nodes to one ghost
	spareWork  = 64       // blocks of removed or shrunk engines that one Insert frees besides its own
)

// Engine is an engine's number in an Index: small, and used again some time after Remove.
type Engine uint32

// Holding is what an Index knows of one engine.
type Holding struct {
	// Blocks is how many leading blocks of the prompt it holds.
	Blocks int32
	// Room is how many blocks fit before others are pushed out, MaxInt32 without a capacity.
	Room int32
	// Regret is the share of the blocks pushed out lately that were asked for again, 0 to 1.
	Regret float32
}

// Index predicts which blocks each engine's prefix cache holds. Every engine has a capacity
// and loses its least recently used blocks first, the end of a prompt before its beginning,
// as vLLM does. All engines share one bound on memory, which the engine with most blocks
// makes room for. It is safe for concurrent use; every call holds one lock for a time that
// grows with the prompt's blocks, not with what is stored.
//
// A block on an engine is a node in a chunked arena of fixed size, found through a bucket of
// its hash: what holds one block is one walk, and the garbage collector sees no pointers.
type Index struct {
	mu      sync.Mutex
	buckets []uint32 // first node of each bucket, 0 for none
	shift   uint8    // of a 64-bit product, to a bucket's number
	chunks  []*[chunkNodes]node
	used    uint32 // nodes taken from chunks; node 0 is never used
	limit   uint32 // nodes at most
	free    uint32 // list of freed nodes by next
	spare   int    // its length
	engines []engine
	dying   []Engine // removed, with blocks left
	unused  []Engine // numbers to give out again
	ghosts  []ghost  // blocks pushed out lately, by hash; a newer one replaces an older
	filler  uint64
	warmed  uint64 // keeps the compiler from leaving out warm's reads
}

type node struct {
	hash   uint64
	next   uint32 // in the bucket or the free list
	newer  uint32 // in the engine's order of use
	older  uint32
	engine Engine
}

type ghost struct {
	tag    uint32
	engine Engine
}

type engine struct {
	newest, oldest uint32
	blocks         int
	capacity       int     // MaxInt32 for none
	evicted        float32 // for capacity, decayed
	returned       float32 // of these, asked for again
}

// NewIndex makes an empty index that takes at most memory bytes, and 32 for each engine.
// 0 means DefaultMemory, and less than 64 KiB means 64 KiB. Memory is taken as it is needed.
func NewIndex(memory int64) *Index {
	if memory == 0 {
		memory = DefaultMemory
	}
	memory = min(max(memory, minMemory), math.MaxUint32/2*nodeBytes)
	// Buckets are made at once: they never grow, so no request waits for a rehash.
	log := bits.Len64(uint64(memory/32)) - 1
	buckets := int64(1) << log
	ghosts := buckets / ghostShare
	chunks := (memory - 4*buckets - 8*ghosts) / (chunkNodes * nodeBytes)
	return &Index{
		buckets: make([]uint32, buckets),
		shift:   uint8(64 - log),
		used:    1,
		limit:   uint32(chunks * chunkNodes),
		ghosts:  make([]ghost, ghosts),
	}
}

// Add makes room for one more engine that holds at most capacity blocks, 0 for no limit.
func (x *Index) Add(capacity int) Engine {
	x.mu.Lock()
	defer x.mu.Unlock()
	fresh := engine{capacity: limited(capacity)}
	if n := len(x.unused); n > 0 {
		e := x.unused[n-1]
		x.unused = x.unused[:n-1]
		x.engines[e] = fresh
		return e
	}
	x.engines = append(x.engines, fresh)
	return Engine(len(x.engines) - 1)
}

// Resize changes an engine's capacity; what is too much goes with the next inserts.
func (x *Index) Resize(e Engine, capacity int) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.engines[e].capacity = limited(capacity)
}

func limited(capacity int) int {
	if capacity <= 0 {
		return math.MaxInt32
	}
	return min(capacity, math.MaxInt32)
}

// Remove forgets an engine, which must not be used after it. Its blocks go with the next
// inserts.
func (x *Index) Remove(e Engine) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.engines[e].blocks == 0 {
		x.unused = append(x.unused, e)
		return
	}
	x.dying = append(x.dying, e)
}

// Match tells what each engine holds of a prompt with these chained blocks. The result is
// dst, grown as needed, indexed by Engine; entries of removed engines have no meaning.
func (x *Index) Match(blocks []uint64, dst []Holding) []Holding {
	x.mu.Lock()
	defer x.mu.Unlock()
	dst = slices.Grow(dst[:0], len(x.engines))[:len(x.engines)]
	for i := range x.engines {
		e := &x.engines[i]
		dst[i] = Holding{Room: math.MaxInt32}
		if e.capacity < math.MaxInt32 {
			dst[i].Room = int32(max(0, e.capacity-e.blocks))
			dst[i].Regret = e.regret()
		}
	}
	if len(blocks) == 0 {
		return dst
	}
	if first := x.holders(blocks, 1, dst); first > 0 && len(blocks) > 1 {
		x.search(blocks, 1, first, len(blocks), x.holders(blocks, len(blocks), dst), dst)
	}
	return dst
}

// search finds what lies between two depths with known numbers of holders. Who holds a block
// holds all before it, so equal numbers mean the same engines and nothing to find.
func (x *Index) search(blocks []uint64, lo, above, hi, below int, dst []Holding) {
	if hi-lo < 2 || above == below {
		return
	}
	mid := (lo + hi) / 2
	n := x.holders(blocks, mid, dst)
	x.search(blocks, lo, above, mid, n, dst)
	x.search(blocks, mid, n, hi, below, dst)
}

// holders counts the engines that hold the block at depth, and notes it for each.
func (x *Index) holders(blocks []uint64, depth int, dst []Holding) (n int) {
	hash := blocks[depth-1]
	for i := x.buckets[x.bucket(hash)]; i != 0; {
		b := x.node(i)
		if b.hash == hash {
			n++
			h := &dst[b.engine]
			h.Blocks = max(h.Blocks, int32(depth))
		}
		i = b.next
	}
	return n
}

// Insert notes that e now holds a prompt's blocks and used them just now. It tells how many
// leading ones it held already. Of a prompt larger than half the index only the head is kept.
func (x *Index) Insert(e Engine, blocks []uint64) (held int) {
	x.mu.Lock()
	defer x.mu.Unlock()
	blocks = blocks[:min(len(blocks), int(x.limit/2))]
	x.makeRoom(len(blocks))
	x.warmed += x.warm(blocks)
	for _, hash := range slices.Backward(blocks) { // the head is the last and so the most recent
		if n := x.find(e, hash); n != 0 {
			x.unlink(n)
			x.link(n)
			held++
			continue
		}
		x.haunt(hash)
		x.add(e, hash)
	}
	x.shrink(e, len(blocks)+spareWork)
	return held
}

// Fill notes that e holds n more blocks that no prompt will ask for by hash: answers.
func (x *Index) Fill(e Engine, n int) {
	x.mu.Lock()
	defer x.mu.Unlock()
	n = min(n, x.engines[e].capacity, int(x.limit/2))
	x.makeRoom(n)
	for range n {
		x.filler++
		x.add(e, mix(x.filler))
	}
	x.shrink(e, n+spareWork)
}

// Drop takes blocks from e, those of a prompt that was not computed after all. What other
// prompts have after them is then found only by chance until it is inserted again.
func (x *Index) Drop(e Engine, blocks []uint64) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, hash := range blocks {
		if n := x.find(e, hash); n != 0 {
			x.release(n)
		}
	}
}

// Len is how many blocks all engines hold together.
func (x *Index) Len() int {
	x.mu.Lock()
	defer x.mu.Unlock()
	return int(x.used) - 1 - x.spare
}

// Bytes is the memory taken now. It never shrinks and never exceeds NewIndex's bound.
func (x *Index) Bytes() int64 {
	x.mu.Lock()
	defer x.mu.Unlock()
	return int64(len(x.buckets))*4 + int64(len(x.ghosts))*8 + int64(len(x.chunks))*chunkNodes*nodeBytes
}
