package kv

import "github.com/cespare/xxhash/v2"

// Seed begins the chain of a model's or LoRA's prompts, so that equal prompts of two models
// have no block in common.
func Seed(model string) uint64 { return xxhash.Sum64String(model) }
