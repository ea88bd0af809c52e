package api

import "github.com/mobula-serve/mobula/control"

var _ Backend = (*control.Control)(nil)
