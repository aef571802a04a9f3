//! What is a GPU's reaches the library as that: the CPU refuses it.
use kvc::*;
use std::os::raw::c_void;
use std::ptr;

fn refused<T>(result: Result<T>, status: Status, part: &str) {
    let error = result.err().expect("this should have failed");
    assert_eq!(error.status, status, "{error}");
    assert!(error.message.contains(part), "{error} lacks {part}");
}

#[test]
fn tensors_streams_and_replays() {
    let device = Device::open("cpu", 1).unwrap();
    device.synchronize().unwrap();
    let desc = CacheDesc {
        n_layers: 1,
        n_kv_heads: 1,
        head_dim_k: 4,
        capacity: 8,
        max_sequences: 1,
        max_batch: 4,
        ..Default::default()
    };
    let mut cache = Cache::new(&device, &desc, &Kind::Causal(CausalDesc::default())).unwrap();
    let (mut data, shape) = ([0.0f32; 8], [2, 1, 4]);
    let address = data.as_mut_ptr() as *mut c_void;
    let on = BeginOptions {
        stream: address,
        ..Default::default()
    };
    let replayed = BeginOptions {
        replay: true,
        ..Default::default()
    };
    unsafe {
        let begun = cache.begin_on(&[0, 1], &[0, 0], on);
        refused(begun, Status::INVALID_ARGUMENT, "stream");
        let begun = cache.begin_reserve_on(2, address);
        refused(begun, Status::INVALID_ARGUMENT, "stream");
        let begun = cache.begin_on(&[0, 1], &[0, 0], replayed);
        refused(begun, Status::NOT_SUPPORTED, "KVC_BEGIN_REPLAY");
    }
    let flags = BeginOptions {
        token_flags: Some(&[TOKEN_SEES_LATER, 0]),
        ..Default::default()
    };
    let mut pass = unsafe { cache.begin_on(&[0, 1], &[0, 0], flags) }.unwrap();
    let there = unsafe { Tensor::on_gpu(3, DType::F32, address, &shape) }.unwrap();
    let here = Tensor::f32(&[0.0; 8], &shape).unwrap();
    refused(pass.put(0, there, here), Status::DEVICE_MISMATCH, "cuda:3");
    pass.put(0, here, here).unwrap();
    let out = unsafe { TensorMut::on_gpu(0, DType::F32, address, &shape) }.unwrap();
    refused(pass.attention(0, here, out), Status::DEVICE_MISMATCH, "out");
}

#[test]
fn memory_of_a_gpu() {
    unsafe extern "C" fn none(_: *mut c_void, _: usize, _: usize) -> *mut c_void {
        ptr::null_mut()
    }
    unsafe extern "C" fn forget(_: *mut c_void, _: *mut c_void, _: usize, _: usize) {}
    let memory = kvc_sys::kvc_allocator {
        user: ptr::null_mut(),
        alloc: Some(none),
        free: Some(forget),
    };
    let opened = |name| unsafe { Device::open_with(name, 1, Some(&memory)) };
    refused(opened("cpu"), Status::NOT_SUPPORTED, "device_allocator");
    refused(opened("cuda:9999"), Status::BACKEND_UNAVAILABLE, "");
}
