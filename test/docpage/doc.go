// Package docpage types in what a page of the documentation shows at its prompts.
package docpage
