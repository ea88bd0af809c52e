package sim

import "slices"

// cache is a paged prefix cache: blocks of token ids under chained hashes, with references
// counted, and the least recently used of the unreferenced ones evicted first. The caller locks.
type cache struct {
	blocks []block
	hashed map[uint64]*block
	// Unreferenced blocks, the next to be taken first; a ring through root.
	root block
	free int
}

type block struct {
	hash       uint64 // 0 for none
	refs       int
	prev, next *block
}

// kvState is what the cache and the scheduler keep of a sequence.
type kvState struct {
	blocks []*block
	hashes []uint64 // of the full blocks
	chain  uint64   // over the tokens so far
	tokens int
	runs   bool // the scheduler's
}

func newCache(n int) *cache {
	c := &cache{blocks: make([]block, n), hashed: make(map[uint64]*block, n)}
	c.root.prev, c.root.next = &c.root, &c.root
	for i := range c.blocks {
		c.release(&c.blocks[i])
	}
	return c
}

// add takes up one token; it tells whether that filled a block.
func (k *kvState) add(id int32, blockSize int) bool {
	k.chain = chain(k.chain, uint64(id))
	k.tokens++
	if k.tokens%blockSize != 0 {
		return false
	}
	k.hashes = append(k.hashes, k.chain|1)
	return true
}

// reserve takes blocks for all of k's tokens, those that are cached already among them, and
// says how many tokens were found. It reports false, and takes none, when too few are free.
// At least one token is never found: its computation gives the first answer.
func (c *cache) reserve(k *kvState, blockSize int) (found int, ok bool) {
	need := (k.tokens + blockSize - 1) / blockSize
	hits := make([]*block, 0, need+1)
	idle := 0
	for _, h := range k.hashes[:min(len(k.hashes), (k.tokens-1)/blockSize)] {
		b := c.hashed[h]
		if b == nil {
			break
		}
		if b.refs == 0 {
			idle++
		}
		hits = append(hits, b)
	}
	if need-len(hits) > c.free-idle {
		return 0, false
	}
	for _, b := range hits {
		c.take(b)
	}
	k.blocks = hits
	for len(k.blocks) < need {
		k.blocks = append(k.blocks, c.fresh())
	}
	return len(hits) * blockSize, true
}

// grow makes room for one more token; it reports false when no block is free.
func (c *cache) grow(k *kvState, blockSize int) bool {
	if k.tokens < len(k.blocks)*blockSize {
		return true
	}
	if c.free == 0 {
		return false
	}
	k.blocks = append(k.blocks, c.fresh())
	return true
}

// publish enters k's full blocks from the n-th on under their hashes, so that others find them.
func (c *cache) publish(k *kvState, n int) {
	for i := n; i < min(len(k.hashes), len(k.blocks)); i++ {
		if b, h := k.blocks[i], k.hashes[i]; b.hash == 0 && c.hashed[h] == nil {
			b.hash = h
			c.hashed[h] = b
		}
	}
}

// drop gives k's blocks back, the last first, so that a chain is evicted from its end.
func (c *cache) drop(k *kvState) {
	for _, b := range slices.Backward(k.blocks) {
		if b.refs--; b.refs == 0 {
			c.release(b)
		}
	}
	k.blocks = nil
}

// reset forgets all that is cached; blocks in use stay with their sequences.
func (c *cache) reset() {
	clear(c.hashed)
	for i := range c.blocks {
		c.blocks[i].hash = 0
	}
}

// usage is the share of blocks in use, 0 to 1.
func (c *cache) usage() float64 {
	return 1 - float64(c.free)/float64(len(c.blocks))
}

// release puts b at the end of the free ring.
func (c *cache) release(b *block) {
	b.prev, b.next = c.root.prev, &c.root
	b.prev.next, c.root.prev = b, b
	c.free++
}

// take references b, which may be free.
func (c *cache) take(b *block) {
	if b.refs == 0 {
		b.prev.next, b.next.prev = b.next, b.prev
		b.prev, b.next = nil, nil
		c.free--
	}
	b.refs++
}

// fresh evicts the block that was unused for longest. One must be free.
func (c *cache) fresh() *block {
	b := c.root.next
	if b.hash != 0 {
		delete(c.hashed, b.hash)
		b.hash = 0
	}
	c.take(b)
	return b
}
