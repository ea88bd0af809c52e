package kv

// makeRoom sees to it that n nodes can be taken: first from removed engines, then from the
// one with most blocks, oldest first.
func (x *Index) makeRoom(n int) {
	for work := n + spareWork; work > 0 && len(x.dying) > 0; work-- {
		x.reap()
	}
	for x.available() < n {
		if len(x.dying) > 0 {
			x.reap()
			continue
		}
		largest := &x.engines[0]
		for i := range x.engines {
			if x.engines[i].blocks > largest.blocks {
				largest = &x.engines[i]
			}
		}
		x.warmed += x.warmOldest(largest, n-x.available())
		for x.available() < n && largest.blocks > 0 {
			x.release(largest.oldest)
		}
	}
}

func (x *Index) available() int { return int(x.limit-x.used) + x.spare }

// reap frees a block of the first removed engine, and its number with the last one.
func (x *Index) reap() {
	e := x.dying[0]
	if oldest := x.engines[e].oldest; oldest != 0 {
		x.release(oldest)
	}
	if x.engines[e].blocks == 0 {
		x.dying = append(x.dying[:0], x.dying[1:]...)
		x.unused = append(x.unused, e)
	}
}

// warm reads what an insert of blocks will: all buckets, then all first nodes. Each read misses
// the CPU's caches in a large index, but reads that don't depend on each other miss together,
// which halves the time of a prompt that is new.
func (x *Index) warm(blocks []uint64) (sum uint64) {
	var firsts [64]uint32
	for len(blocks) > 0 {
		n := min(len(blocks), len(firsts))
		for i, hash := range blocks[:n] {
			firsts[i] = x.buckets[x.bucket(hash)]
		}
		for _, i := range firsts[:n] {
			if i != 0 {
				sum += x.node(i).hash
			}
		}
		blocks = blocks[n:]
	}
	return sum
}

// warmOldest does the same for the n oldest blocks of g, which are about to be pushed out.
func (x *Index) warmOldest(g *engine, n int) (sum uint64) {
	var hashes [64]uint64
	for i := g.oldest; n > 0 && i != 0; {
		k := 0
		for ; k < len(hashes) && n > 0 && i != 0; k++ {
			b := x.node(i)
			hashes[k] = b.hash
			i = b.newer
			n--
		}
		sum += x.warm(hashes[:k])
	}
	return sum
}

// shrink pushes out what e holds over its capacity, at most work blocks.
func (x *Index) shrink(e Engine, work int) {
	g := &x.engines[e]
	if g.blocks > g.capacity {
		x.warmed += x.warmOldest(g, min(work, g.blocks-g.capacity))
	}
	for ; g.blocks > g.capacity && work > 0; work-- {
		hash := x.node(g.oldest).hash
		x.ghosts[x.ghost(hash)] = ghost{tag: uint32(hash), engine: e}
		x.release(g.oldest)
		g.evicted++
	}
	if g.evicted > regretWindow {
		g.evicted /= 2
		g.returned /= 2
	}
}

// regretWindow is how many evictions a regret is formed over: a few prompts more would not
// steady it, many more would hide a change of traffic.
const regretWindow = 4096

func (g *engine) regret() float32 {
	// A few evictions prove nothing: 32, a long prompt's, count as kept.
	return min(1, g.returned/(g.evicted+32))
}

// haunt blames the engine that pushed out a block that is now computed again somewhere.
func (x *Index) haunt(hash uint64) {
	g := &x.ghosts[x.ghost(hash)]
	if g.tag == uint32(hash) && g.tag != 0 {
		x.engines[g.engine].returned++
		*g = ghost{}
	}
}

func (x *Index) bucket(hash uint64) uint64 { return hash * 0x9e3779b97f4a7c15 >> x.shift }

func (x *Index) ghost(hash uint64) uint64 { return x.bucket(hash) / ghostShare }

func (x *Index) node(i uint32) *node { return &x.chunks[i/chunkNodes][i%chunkNodes] }

// find gives e's node for a block, 0 for none.
func (x *Index) find(e Engine, hash uint64) uint32 {
	i := x.buckets[x.bucket(hash)]
	for i != 0 {
		b := x.node(i)
		if b.hash == hash && b.engine == e {
			break
		}
		i = b.next
	}
	return i
}

// add makes a node for a block that e does not hold. makeRoom has been called.
func (x *Index) add(e Engine, hash uint64) {
	var i uint32
	if x.free != 0 {
		i = x.free
		x.free = x.node(i).next
		x.spare--
	} else {
		i = x.used
		x.used++
		if int(i/chunkNodes) == len(x.chunks) {
			x.chunks = append(x.chunks, new([chunkNodes]node))
		}
	}
	b := x.bucket(hash)
	*x.node(i) = node{hash: hash, engine: e, next: x.buckets[b]}
	x.buckets[b] = i
	x.link(i)
	x.engines[e].blocks++
}

// release takes a node from its engine and bucket and frees it.
func (x *Index) release(i uint32) {
	n := x.node(i)
	x.unlink(i)
	x.engines[n.engine].blocks--
	at := &x.buckets[x.bucket(n.hash)]
	for *at != i {
		at = &x.node(*at).next
	}
	*at = n.next
	n.next = x.free
	x.free = i
	x.spare++
}

// link makes a node its engine's most recent.
func (x *Index) link(i uint32) {
	n := x.node(i)
	e := &x.engines[n.engine]
	n.newer, n.older = 0, e.newest
	if e.newest != 0 {
		x.node(e.newest).newer = i
	} else {
		e.oldest = i
	}
	e.newest = i
}

// unlink takes a node out of its engine's order.
func (x *Index) unlink(i uint32) {
	n := x.node(i)
	e := &x.engines[n.engine]
	if n.newer != 0 {
		x.node(n.newer).older = n.older
	} else {
		e.newest = n.older
	}
	if n.older != 0 {
		x.node(n.older).newer = n.newer
	} else {
		e.oldest = n.newer
	}
}
