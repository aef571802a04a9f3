package kvc

import (
	"testing"
	"unsafe"
)

// What is a GPU's reaches the library as that: the CPU refuses it.
func TestWhatIsAGPUsIsRefusedByTheCPU(t *testing.T) {
	cache := open(t)
	k, v, _, _ := arrays(2)
	positions, sequences, stream := []int32{0, 1}, []int32{0, 0}, unsafe.Pointer(&k[0])
	is(t, cache.BeginWith(positions, sequences, BeginOptions{Stream: stream}), InvalidArgument, "stream")
	is(t, cache.BeginReserveOn(2, stream), InvalidArgument, "stream")
	is(t, cache.BeginWith(positions, sequences, BeginOptions{Replay: true}), NotSupported, "KVC_BEGIN_REPLAY")
	must(t, cache.BeginWith(positions, sequences, BeginOptions{Flags: []TokenFlags{SeesLater, 0}}))
	there := OnGPU(3, F32, unsafe.Pointer(&k[0]), 2, kvHeads, headDim)
	is(t, cache.Put(0, there, kv(v, 2)), DeviceMismatch, "cuda:3")
	is(t, cache.Put(0, kv(k, 2), OnGPU(0, F32, unsafe.Pointer(&v[0]), 2, kvHeads, headDim)), DeviceMismatch, "v is on")
	must(t, cache.Put(0, kv(k, 2), kv(v, 2)))
	must(t, cache.Abort())
	panics(t, func() { View{OnGPU: true, DType: F32, Shape: [3]int{1, 1, 1}}.Float32(0, 0) })
}

func TestDevicesThatAreNotThere(t *testing.T) {
	device, err := OpenDevice("cpu", DeviceOptions{NThreads: 1})
	must(t, err)
	must(t, device.Synchronize())
	must(t, device.Close())
	is(t, device.Synchronize(), InvalidHandle, "")
	address := unsafe.Pointer(new(int))
	memory := Allocator{Alloc: address, Free: address} // never called
	_, err = OpenDevice("cpu", DeviceOptions{DeviceAllocator: memory})
	is(t, err, NotSupported, "device_allocator")
	_, err = OpenDevice("cpu", DeviceOptions{DeviceAllocator: Allocator{Alloc: address}})
	is(t, err, InvalidArgument, "device_allocator.free is null")
	_, err = OpenDevice("cuda:9999", DeviceOptions{DeviceAllocator: memory})
	is(t, err, BackendUnavailable, "")
}
