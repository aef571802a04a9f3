package kvc

import "fmt"

// What a q8_0 cache stores of a token, saved and put into another cache. Nothing is encoded twice, so the
// two caches hold the same bytes.
func ExampleCache_PutCodes() {
	device, _ := OpenDevice("cpu", DeviceOptions{})
	defer device.Close()
	const heads, size = 2, 64
	desc := CacheDesc{
		NLayers: 1, NKVHeads: heads, HeadDimK: size, DTypeK: Q8_0, DTypeV: Q8_0,
		MaxSequences: 1, Capacity: 16, MaxBatch: 4, Flags: RotateK | RotateV,
	}
	first, _ := NewCache(device, desc, CausalDesc{})
	defer first.Close()
	second, _ := NewCache(device, desc, CausalDesc{})
	defer second.Close()
	k, v := make([]float32, heads*size), make([]float32, heads*size)
	for i := range k {
		k[i], v[i] = float32(i%9)-4, float32(i%7)
	}

	_ = first.Begin([]int32{0}, []int32{0})
	_ = first.Put(0, Float32(k, 1, heads, size), Float32(v, 1, heads, size))
	codesK, codesV, _ := first.GetCodes(0)
	savedK, scalesOfK := codesK.Codes.AppendCells(nil, 0, 1), codesK.Scales.AppendCells(nil, 0, 1)
	savedV, scalesOfV := codesV.Codes.AppendCells(nil, 0, 1), codesV.Scales.AppendCells(nil, 0, 1)
	_ = first.Commit()

	info, _ := StorageQuery(Q8_0, size, 0)
	codes := func(saved []byte) Tensor { return Bytes(info.CodeDType, saved, 1, heads, info.CodesPerRow) }
	scales := func(saved []byte) Tensor { return Bytes(info.ScaleDType, saved, 1, heads, info.ScalesPerRow) }
	_ = second.Begin([]int32{0}, []int32{0})
	_ = second.PutCodes(0, codes(savedK), scales(scalesOfK), codes(savedV), scales(scalesOfV))
	_ = second.Commit()

	a, _ := first.Digest()
	b, _ := second.Digest()
	fmt.Println(info.BytesPerRow, "bytes for a vector of", size, "numbers")
	fmt.Println(a == b)
	// Output:
	// 68 bytes for a vector of 64 numbers
	// true
}

// Two vectors in 4 bits each, as a cache of this storage holds them.
func ExampleEncode() {
	desc := CodecDesc{DType: Q4_0}
	info, _ := StorageQuery(desc.DType, 32, 0)
	x := make([]float32, 2*32)
	for i := range x {
		x[i] = float32(i%16) - 8
	}
	codes, scales := make([]uint8, 2*info.CodesPerRow), make([]uint16, 2*info.ScalesPerRow)
	_ = Encode(desc, Float32(x, 2, 32), Uint8(codes, 2, info.CodesPerRow), Float16(scales, 2, info.ScalesPerRow))
	read := make([]float32, 2*32)
	_ = Decode(desc, Uint8(codes, 2, info.CodesPerRow), Float16(scales, 2, info.ScalesPerRow), Float32(read, 2, 32))
	fmt.Println(info.BytesPerRow, "bytes a vector:", info.CodesPerRow, "codes of", info.CodeDType, "and a scale of", info.ScaleDType)
	fmt.Println(read[:4])
	// Output:
	// 18 bytes a vector: 16 codes of u8 and a scale of f16
	// [-8 -7 -6 -5]
}

// Latent attention: 192 numbers are stored for each token, and the first 128 of them are its value too.
func ExampleCacheDesc_latentAttention() {
	device, _ := OpenDevice("cpu", DeviceOptions{})
	defer device.Close()
	const queryHeads, stored, value = 4, 192, 128
	cache, _ := NewCache(device, CacheDesc{
		NLayers: 1, NKVHeads: 1, HeadDimK: stored, HeadDimV: value, DTypeK: F16,
		MaxSequences: 1, Capacity: 16, MaxBatch: 4, Flags: VInK,
	}, CausalDesc{})
	defer cache.Close()
	latent, q, out := make([]float32, stored), make([]float32, queryHeads*stored), make([]float32, queryHeads*value)
	for i := range latent {
		latent[i] = float32(i % 5)
	}
	_ = cache.Begin([]int32{0}, []int32{0})
	_ = cache.PutAttention(0, Float32(latent, 1, 1, stored), Tensor{},
		Float32(q, 1, queryHeads, stored), Float32(out, 1, queryHeads, value))
	_ = cache.Commit()
	fmt.Println(out[:5])
	// Output: [0 1 2 3 4]
}
