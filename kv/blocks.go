// Package kv is the KV-cache network: it answers how long a prefix of a prompt each engine
// holds. This root package has the block hashes and the bounded index over them.
package kv

import "github.com/cespare/xxhash/v2"

// Blocks appends to dst one hash for each whole block of size bytes of the concatenated
// segments; a last partial block is left out. Hashes are chained: equal hashes mean, but for
// chance, that all text up to the block's end is equal. seed begins the chain and keeps apart
// what may not share a cache (a model or LoRA name's hash). Where segments are cut makes no
// difference. Nothing but dst's growth is allocated; a size below 1 gives no blocks.
func Blocks(dst []uint64, seed uint64, size int, segments ...[]byte) []uint64 {
	if size < 1 {
		return dst
	}
	var d xxhash.Digest // a block that runs over a segment's end
	have := 0           // bytes in d
	h := seed
	for _, s := range segments {
		if have > 0 {
			n := min(size-have, len(s))
			_, _ = d.Write(s[:n]) // never fails
			have += n
			s = s[n:]
			if have < size {
				continue
			}
			h = chain(h, d.Sum64())
			dst = append(dst, h)
			have = 0
		}
		for ; len(s) >= size; s = s[size:] {
			h = chain(h, xxhash.Sum64(s[:size]))
			dst = append(dst, h)
		}
		if len(s) > 0 {
			d.Reset()
			_, _ = d.Write(s)
			have = len(s)
		}
	}
	return dst
}

// chain mixes a block's hash into its parent's. It is a bijection of sum for each h, so that
// siblings collide only where xxhash does.
func chain(h, sum uint64) uint64 {
	return mix(h*0x9e3779b97f4a7c15 + sum)
}

// mix is murmur3's finalizer: every input bit reaches every output bit.
func mix(x uint64) uint64 {
	x ^= x >> 33
	x *= 0xff51afd7ed558ccd
	x ^= x >> 33
	x *= 0xc4ceb9fe1a85ec53
	return x ^ x>>33
}
