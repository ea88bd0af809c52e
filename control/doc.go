// Package control is the control plane: it holds what is wanted against what there is and has the
// platform close the gap.
package control
