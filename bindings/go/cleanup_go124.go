//go:build go1.24

package kvc

import "runtime"

// whenForgotten destroys a handle when its owner has been collected. After Close this does nothing,
// because the library knows the handle no more.
func whenForgotten[T, H any](owner *T, handle H, destroy func(H)) {
	runtime.AddCleanup(owner, destroy, handle)
}
