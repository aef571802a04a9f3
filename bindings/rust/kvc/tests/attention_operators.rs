//! Operators of a caller's: what becomes of their errors and panics, and when they are dropped.
mod own_operator;
mod support;
use kvc::*;
use own_operator::{desc, everything, scripted, DIM, KV};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::Arc;
use support::fails;

/// A cache that attends with `op`, and one token of it.
fn attend_once(device: &Device, op: &Operator) -> (Cache, Result<Vec<f32>>) {
    let mut cache = Cache::new(device, &desc(1), &Kind::Causal(CausalDesc::default())).unwrap();
    cache.bind_operator(0, 1, Modes::ALL, Some(op)).unwrap();
    let x = [0.5; KV * DIM];
    let mut out = vec![9.0; KV * DIM];
    let mut pass = cache.begin(&[0], &[0]).unwrap();
    let x = Tensor::f32(&x, &[1, KV, DIM]).unwrap();
    let into = TensorMut::f32(&mut out, &[1, KV, DIM]).unwrap();
    let attended = pass.put_attention(0, x, x, x, into);
    drop(pass);
    (cache, attended.map(|()| out))
}

fn op_of<F>(device: &Device, forward: F) -> Operator
where
    F: Fn(&mut OperatorCall<'_>) -> Result<()> + Send + Sync + 'static,
{
    device
        .operator_replace("mine", &everything(), scripted(forward).0)
        .unwrap();
    Operator::new(device, "mine", &OperatorDesc::default()).unwrap()
}

#[test]
fn errors_of_an_operator_are_those_of_the_call() {
    let device = Device::open("cpu", 1).unwrap();
    for (status, want) in [
        (Status::NOT_SUPPORTED, Status::NOT_SUPPORTED),
        (Status::CACHE_FULL, Status::CACHE_FULL),
        (Status(0), Status::INVALID_ARGUMENT),
        (Status(-1234), Status::INVALID_ARGUMENT),
        (Status(7), Status::INVALID_ARGUMENT),
    ] {
        let op = op_of(&device, move |_| Err(Error::new(status, "not on a Monday")));
        let (mut cache, attended) = attend_once(&device, &op);
        fails(attended, want, "not on a Monday");
        assert_eq!(cache.stats().unwrap().state, State::IDLE);
        // The message goes with its error alone.
        let error = cache.resume(9, 0).unwrap_err();
        assert!(!error.message.contains("Monday"), "{error}");
    }
    // An error of a call inside is handed on.
    let op = op_of(&device, |call| {
        let mut narrow = [false];
        call.call_mask(TensorMut::bool(&mut narrow, &[1, 1, 1])?)
    });
    fails(attend_once(&device, &op).1, Status::SHAPE, "into");
    let op = op_of(&device, |call| call.call_positions(5, &mut [0; 4]));
    fails(
        attend_once(&device, &op).1,
        Status::INVALID_ARGUMENT,
        "sequence 5",
    );
    let op = op_of(&device, |_| Err(Error::new(Status::DEVICE, "it is gone")));
    let (cache, attended) = attend_once(&device, &op);
    fails(attended, Status::DEVICE, "it is gone");
    assert_eq!(cache.stats().unwrap().state, State::POISONED);
}

#[test]
fn panics_of_an_operator_are_caught() {
    let device = Device::open("cpu", 1).unwrap();
    type Forward = fn(&mut OperatorCall<'_>) -> Result<()>;
    let panics: [(Forward, &str); 4] = [
        (|_| panic!("a plain text"), "it panicked: a plain text"),
        (
            |call| panic!("{} tokens", call.n_tokens),
            "it panicked: 1 tokens",
        ),
        (
            |_| std::panic::panic_any(7),
            "it panicked: without a message",
        ),
        (
            |call| {
                call.out
                    .f32(1, 0)
                    .map(|_| ())
                    .ok_or(Error::new(Status::DTYPE, ""))
            },
            "outside",
        ),
    ];
    for (forward, words) in panics {
        let op = op_of(&device, forward);
        let (cache, attended) = attend_once(&device, &op);
        fails(attended, Status::INTERNAL, words);
        assert_eq!(cache.stats().unwrap().state, State::POISONED);
    }
}

#[test]
fn an_operator_is_asked_what_it_supports() {
    let device = Device::open("cpu", 1).unwrap();
    let (op, _) = scripted(|_| Ok(()));
    device.operator_register("mine", &everything(), op).unwrap();
    let needs = |head_dim_k| OperatorNeeds {
        mode: Modes::PREFILL,
        head_dim_k,
        ..Default::default()
    };
    assert_eq!(
        device.operator_supports(Some("mine"), &needs(8)).unwrap(),
        "mine"
    );
    let refused = device.operator_supports(Some("mine"), &needs(16));
    fails(refused, Status::NOT_SUPPORTED, "heads have 8 numbers");
    let wide = CacheDesc {
        head_dim_k: 16,
        ..desc(1)
    };
    let op = Operator::new(&device, "mine", &OperatorDesc::default()).unwrap();
    let mut cache = Cache::new(&device, &wide, &Kind::Causal(CausalDesc::default())).unwrap();
    let refused = cache.bind_operator(0, 1, Modes::ALL, Some(&op));
    fails(refused, Status::NOT_SUPPORTED, "heads have 8 numbers");
}

#[test]
fn an_operator_is_dropped_once_when_nothing_holds_it() {
    let device = Device::open("cpu", 1).unwrap();
    let at_drops = |counter: &Arc<AtomicI32>, n| assert_eq!(counter.load(Ordering::SeqCst), n);
    let register = |names: &str| {
        let (op, drops) = scripted(|_| Ok(()));
        (device.operator_register(names, &everything(), op), drops)
    };
    let (registered, drops) = register("mine,other");
    registered.unwrap();
    for names in ["mine", "flash", "", "Mine", "a,,b", "a\0b"] {
        let (refused, drops) = register(names);
        fails(refused, Status::INVALID_ARGUMENT, "name");
        at_drops(&drops, 1);
    }
    let op = Operator::new(&device, "other", &OperatorDesc::default()).unwrap();
    let (mut cache, attended) = attend_once(&device, &op);
    attended.unwrap();
    device.operator_unregister("mine").unwrap();
    fails(device.operator_find("other"), Status::NOT_FOUND, "other");
    fails(
        device.operator_unregister("other"),
        Status::NOT_FOUND,
        "other",
    );
    fails(
        device.operator_unregister("flash"),
        Status::NOT_SUPPORTED,
        "flash",
    );
    drop(op);
    at_drops(&drops, 0);
    cache.bind_operator(0, 1, Modes::ALL, None).unwrap();
    at_drops(&drops, 1);

    // In the registry alone: with its name, or with its device.
    let (registered, drops) = register("mine");
    registered.unwrap();
    let (op, last) = scripted(|_| Ok(()));
    device.operator_replace("mine", &everything(), op).unwrap();
    at_drops(&drops, 1);
    drop(device);
    at_drops(&last, 1);
}

#[test]
fn a_panic_while_an_operator_is_dropped_is_caught() {
    let (op, drops) = scripted(|_| Ok(()));
    let thread = std::thread::Builder::new().name("drops panic".into());
    let unregister = move || {
        let device = Device::open("cpu", 1).unwrap();
        device.operator_register("mine", &everything(), op).unwrap();
        device.operator_unregister("mine")
    };
    thread.spawn(unregister).unwrap().join().unwrap().unwrap();
    assert_eq!(drops.load(Ordering::SeqCst), 1);
}

#[test]
fn operators_attend_on_several_threads_at_once() {
    let device = Device::open("cpu", 1).unwrap();
    let op = op_of(&device, |call| {
        let token = call.n_tokens as f32;
        call.out.f32(0, 0).unwrap().fill(token);
        match call.layer {
            0 => Ok(()),
            _ => Err(Error::new(Status::IO, "no")),
        }
    });
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..20 {
                    let out = attend_once(&device, &op).1.unwrap();
                    assert_eq!((out[0], out[DIM]), (1.0, 9.0));
                }
            });
        }
    });
}
