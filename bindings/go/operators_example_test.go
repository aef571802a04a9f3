package kvc

import "fmt"

// Linear attention with decay: the state of a sequence has the same size after any number of tokens.
func ExampleLightningDesc() {
	device, _ := OpenDevice("cpu", DeviceOptions{})
	defer device.Close()
	const layers, heads, size = 1, 2, 4
	cache, _ := NewCache(device, CacheDesc{
		NLayers: layers, NKVHeads: heads, HeadDimK: size, MaxSequences: 1, MaxBatch: 8,
	}, LightningDesc{Checkpoints: None})
	defer cache.Close()
	slopes := make([]float32, heads)
	for layer := 0; layer < layers; layer++ {
		_ = Slopes(SlopesLightning2, layer, layers, slopes)
		_ = cache.BindDecay(layer, layer+1, slopes)
	}

	x, out := make([]float32, 3*heads*size), make([]float32, 3*heads*size) // x stands for k, v and q
	for i := range x {
		x[i] = 1
	}
	tokens := Float32(x, 3, heads, size)
	_ = cache.Begin([]int32{0, 1, 2}, []int32{0, 0, 0})
	_ = cache.PutAttention(0, tokens, tokens, tokens, Float32(out, 3, heads, size))
	_ = cache.Commit()
	state := make([]float32, heads*size*size)
	_ = cache.LightningRead(0, 0, 1, Float32(state, 1, heads, size, size))
	fmt.Printf("%.3f %.3f %.3f\n", out[0], out[heads*size], out[2*heads*size])
	fmt.Printf("%.3f\n", state[0])
	// Output:
	// 4.000 7.758 11.288
	// 2.822
}

// Layers attend with an operator of a name, and what it lacks is an error that names it.
func ExampleNewOperator() {
	device, _ := OpenDevice("cpu", DeviceOptions{})
	defer device.Close()
	cache, _ := NewCache(device, CacheDesc{
		NLayers: 1, NKVHeads: 1, HeadDimK: 8, MaxSequences: 1, Capacity: 16, MaxBatch: 4,
	}, CausalDesc{})
	defer cache.Close()

	vanilla, _ := NewOperator(device, "vanilla", OperatorDesc{SoftmaxDType: F64, DropoutProb: 0.1})
	defer vanilla.Close()
	fmt.Println(cache.BindOperator(0, 1, ModeTrain, vanilla))
	fmt.Println(device.Supports("", OperatorNeeds{Mode: ModePrefill, Features: FeatureDropout}))
	_, err := device.Supports("decode", OperatorNeeds{Mode: ModePrefill})
	fmt.Println(err != nil)
	// Output:
	// <nil>
	// vanilla <nil>
	// true
}

// Attention without a cache, in two parts of the keys that are merged.
func ExampleOperator_ForwardWith() {
	device, _ := OpenDevice("cpu", DeviceOptions{})
	defer device.Close()
	const size = 8
	op, _ := NewOperator(device, "flash", OperatorDesc{MaxRows: 1, MaxQLen: 1, MaxKVLen: 2, NKVHeads: 1, HeadDimK: size})
	defer op.Close()
	q, k, v := make([]float32, size), make([]float32, 4*size), make([]float32, 4*size)
	for i := range v {
		v[i] = float32(i / size)
	}
	var o, lse [2][]float32
	for part := range o {
		o[part], lse[part] = make([]float32, size), make([]float32, 1)
		keys, values := Float32(k[2*part*size:], 1, 2, 1, size), Float32(v[2*part*size:], 1, 2, 1, size)
		_ = op.ForwardWith(ForwardDesc{NoSinks: true}, Float32(q, 1, 1, 1, size), keys, values, Float32(o[part], 1, 1, 1, size),
			AttentionExtra{LSE: Float32(lse[part], 1, 1, 1)})
	}
	_ = MergeAttention(Float32(o[0], 1, size), Float32(lse[0], 1), Float32(o[1], 1, size), Float32(lse[1], 1))
	fmt.Printf("%.2f %.4f\n", o[0][0], lse[0][0]) // the mean of 0, 1, 2, 3, and log 4
	// Output: 1.50 1.3863
}
