//! Recurrent caches: states by copy and in place, convolutions, draft states, checkpoints.
use kvc::*;

const LAYERS: i32 = 2;
const SIZE: usize = 6;
const CHANNELS: usize = 2;
const CONV: usize = 3;

fn desc() -> CacheDesc {
    CacheDesc {
        n_layers: LAYERS,
        max_sequences: 3,
        max_batch: 8,
        ..Default::default()
    }
}

fn kind() -> RecurrentDesc {
    RecurrentDesc {
        state_size: SIZE as i64,
        conv_channels: CHANNELS as i32,
        conv_dim: CONV as i32,
        checkpoint_interval: NONE,
        checkpoint_min_pos: NONE,
        ..Default::default()
    }
}

fn open(kind: RecurrentDesc) -> Cache {
    let device = Device::open("cpu", 2).unwrap();
    Cache::new(&device, &desc(), &Kind::Recurrent(kind)).unwrap()
}

fn fails<T>(result: Result<T>, status: Status, part: &str) {
    let error = result.err().expect("this should have failed");
    assert_eq!(error.status, status, "{error}");
    assert!(error.message.contains(part), "{error}");
}

/// The recurrence of these tests.
fn recur(state: &[f32], token: f32) -> Vec<f32> {
    state.iter().map(|x| 0.5 * x + token).collect()
}

/// Runs a batch by copy; token `i` has the input `inputs[i]`.
fn run<'c>(cache: &'c mut Cache, positions: &[i32], sequences: &[i32], inputs: &[f32]) -> Pass<'c> {
    let mut pass = cache.begin(positions, sequences).unwrap();
    let layout = pass.state_layout().unwrap();
    let n = layout.sequences.len();
    for layer in 0..LAYERS {
        let mut before = vec![9.0; n * SIZE];
        let into = TensorMut::f32(&mut before, &[n, 2, SIZE / 2]).unwrap();
        pass.state_get(layer, Part::Recurrent, into).unwrap();
        let mut rows = Vec::new();
        for (i, sequence) in layout.sequences.iter().enumerate() {
            let mut state = before[i * SIZE..][..SIZE].to_vec();
            let tokens = &layout.order[sequence.tokens.clone()];
            for (nth, &token) in tokens.iter().enumerate() {
                state = recur(&state, inputs[token]);
                if sequence.rows.len() == tokens.len() || nth + 1 == tokens.len() {
                    rows.extend_from_slice(&state);
                }
            }
        }
        let from = Tensor::f32(&rows, &[layout.n_rows, SIZE]).unwrap();
        pass.state_put(layer, Part::Recurrent, from).unwrap();
        let columns: Vec<f32> = inputs.iter().flat_map(|&x| [x; CHANNELS]).collect();
        let columns = Tensor::f32(&columns, &[inputs.len(), CHANNELS]).unwrap();
        pass.state_conv(layer, columns).unwrap();
    }
    pass
}

fn state(cache: &mut Cache, sequence: i32, at: i32) -> f32 {
    let mut state = [9.0; SIZE];
    let into = TensorMut::f32(&mut state, &[3, 2]).unwrap();
    let part = Part::Recurrent;
    cache
        .state_gather(LAYERS - 1, part, sequence, at, into)
        .unwrap();
    assert_eq!(state, [state[0]; SIZE]);
    state[0]
}

fn columns(cache: &mut Cache, sequence: i32, at: i32) -> [f32; CONV] {
    let mut state = [9.0; CHANNELS * CONV];
    let into = TensorMut::f32(&mut state, &[CHANNELS, CONV]).unwrap();
    cache
        .state_gather(0, Part::Conv, sequence, at, into)
        .unwrap();
    assert_eq!(state[..CONV], state[CONV..]);
    [state[0], state[1], state[2]]
}

#[test]
fn a_layout_lists_the_batch_by_sequences() {
    let mut cache = open(RecurrentDesc {
        draft_states: 1,
        ..kind()
    });
    let sequences = [2, 0, PADDING, 2, 0, 0];
    let pass = cache.begin(&[0, 0, 0, 1, 1, 2], &sequences).unwrap();
    let layout = pass.state_layout().unwrap();
    let expected = |sequence, tokens, rows| StateSequence {
        sequence,
        tokens,
        rows,
        read_slot: 0, // new sequences
    };
    assert_eq!(
        layout.sequences,
        [expected(2, 0..2, 0..2), expected(0, 2..5, 2..3)]
    );
    assert_eq!(layout.order, [0, 3, 1, 4, 5, 2]);
    assert_eq!(layout.n_rows, 3);
}

#[test]
fn states_by_copy_are_kept_forked_and_taken_back() {
    let mut cache = open(kind());
    run(&mut cache, &[0, 0, 1], &[0, 1, 0], &[1.0, 4.0, 2.0])
        .commit()
        .unwrap();
    assert_eq!(
        (state(&mut cache, 0, 2), state(&mut cache, 1, 1)),
        (2.5, 4.0)
    );
    assert_eq!(columns(&mut cache, 0, 2), [0.0, 1.0, 2.0]);
    assert_eq!(state(&mut cache, 0, 0), 0.0);
    let part = Part::Recurrent;
    let mut one = [0.0; SIZE];
    let into = TensorMut::f32(&mut one, &[SIZE]).unwrap();
    fails(
        cache.state_gather(0, part, 0, 1, into),
        Status::NOT_FOUND,
        "",
    );

    assert_eq!(cache.copy_prefix(0, 2, 2), Ok(2));
    drop(run(&mut cache, &[2], &[0], &[100.0])); // aborted
    run(&mut cache, &[2], &[2], &[8.0]).commit().unwrap();
    assert_eq!(
        (state(&mut cache, 0, 2), state(&mut cache, 2, 3)),
        (2.5, 9.25)
    );
    assert_eq!(columns(&mut cache, 2, 3), [1.0, 2.0, 8.0]);
    assert_eq!(cache.sequence(2).unwrap().next, 3);
    cache.check().unwrap();
}

#[test]
fn draft_states_keep_a_prefix_of_what_was_drafted() {
    let mut cache = open(RecurrentDesc {
        draft_states: 3,
        ..kind()
    });
    let positions = [0, 1, 2, 3];
    let pass = run(&mut cache, &positions, &[0; 4], &[1.0, 2.0, 3.0, 4.0]);
    pass.commit_prefix(&[0], &[2]).unwrap();
    assert_eq!(state(&mut cache, 0, 2), 2.5);
    assert_eq!(columns(&mut cache, 0, 2), [0.0, 1.0, 2.0]);

    let mut plain = open(kind());
    let pass = run(&mut plain, &positions, &[0; 4], &[1.0; 4]);
    fails(pass.commit_prefix(&[0], &[2]), Status::NOT_SUPPORTED, "");
    assert_eq!(plain.sequence(0).unwrap().next, 0); // the error aborted the pass
}

#[test]
fn sequences_resume_at_their_checkpoints() {
    let mut cache = open(kind());
    for position in 0..3 {
        run(&mut cache, &[position], &[0], &[1.0]).commit().unwrap();
        if position < 2 {
            cache.checkpoint_take(0).unwrap();
        }
    }
    assert_eq!(cache.checkpoint_list(0), Ok(vec![1, 2]));
    assert_eq!(cache.checkpoint_list(1), Ok(Vec::new()));
    assert_eq!(state(&mut cache, 0, 1), 1.0); // that of a checkpoint
    assert_eq!(cache.copy_prefix(0, 1, 1), Ok(1));
    assert_eq!(cache.checkpoint_list(1), Ok(vec![1]));
    assert_eq!((cache.can_resume(0, 9), cache.resume(0, 2)), (Ok(3), Ok(2)));
    assert_eq!(state(&mut cache, 0, 2), 1.5);
    assert_eq!(cache.resume(0, 1), Ok(1));
    assert_eq!(cache.checkpoint_list(0), Ok(vec![1])); // later ones are forgotten
    fails(cache.checkpoint_list(3), Status::INVALID_ARGUMENT, "3");
    fails(cache.checkpoint_take(3), Status::INVALID_ARGUMENT, "3");

    let mut without = open(RecurrentDesc {
        checkpoints: NONE,
        ..kind()
    });
    fails(without.checkpoint_take(0), Status::NOT_SUPPORTED, "");
}

#[test]
fn checkpoints_are_taken_by_interval_and_listed_as_if_committed() {
    let mut cache = open(RecurrentDesc {
        checkpoints: 2,
        checkpoint_interval: 2,
        checkpoint_min_pos: 1,
        ..kind()
    });
    for position in 0..6 {
        run(&mut cache, &[position], &[0], &[1.0]).commit().unwrap();
    }
    assert_eq!(cache.checkpoint_list(0), Ok(vec![4, 6]));
    let pass = run(&mut cache, &[6, 7], &[0, 0], &[1.0, 1.0]);
    assert_eq!(pass.checkpoint_list(0), Ok(vec![6, 8]));
    pass.abort().unwrap();
    assert_eq!(cache.checkpoint_list(0), Ok(vec![4, 6]));
}

#[test]
fn a_state_that_contains_what_was_removed_is_marked() {
    let mut exact = open(kind());
    run(&mut exact, &[0, 1], &[0, 0], &[1.0; 2])
        .commit()
        .unwrap();
    fails(exact.remove(0, 0, 1), Status::NOT_SUPPORTED, "");
    let mut cache = open(RecurrentDesc {
        approximate: true,
        ..kind()
    });
    run(&mut cache, &[0, 1], &[0, 0], &[1.0; 2])
        .commit()
        .unwrap();
    assert!(!cache.sequence(0).unwrap().approximate);
    cache.remove(0, 0, 1).unwrap();
    let info = cache.sequence(0).unwrap();
    assert!(info.approximate && info.next == 1);
}

/// The same states by copy and in place, of each storage type.
#[test]
fn states_in_place_are_those_by_copy() {
    let mut by_copy = open(RecurrentDesc {
        draft_states: 1,
        ..kind()
    });
    let mut in_place = open(RecurrentDesc {
        draft_states: 1,
        ..kind()
    });
    let batches: [(&[i32], &[i32], &[f32]); 3] = [
        (&[0, 0, 1], &[0, 1, 0], &[1.0, 2.0, 3.0]),
        (&[2, 3, 4, 1], &[0, 0, 0, 1], &[4.0, 5.0, 6.0, 7.0]), // too many for draft states
        (&[5, 0], &[0, 2], &[8.0, 9.0]),
    ];
    for (positions, sequences, inputs) in batches {
        run(&mut by_copy, positions, sequences, inputs)
            .commit()
            .unwrap();
        let mut pass = in_place.begin(positions, sequences).unwrap();
        let layout = pass.state_layout().unwrap();
        for layer in 0..LAYERS {
            let mut view = pass.state_view(layer, Part::Recurrent).unwrap();
            assert_eq!((view.dtype(), view.slot_len()), (DType::F32, SIZE));
            assert!(view.bits().is_none());
            let states = view.f32().unwrap();
            assert_eq!(states.len(), layout.sequences.len());
            for (mut states, sequence) in states.zip(&layout.sequences) {
                assert_eq!(states.n_rows(), sequence.rows.len());
                let tokens = &layout.order[sequence.tokens.clone()];
                for (row, tokens) in tokens.chunks(tokens.len() / states.n_rows()).enumerate() {
                    let (before, after) = states.step(row);
                    let recurred = tokens.iter().fold(before.to_vec(), |state, &token| {
                        recur(&state, inputs[token])
                    });
                    after.copy_from_slice(&recurred);
                }
            }
            view.done().unwrap();
            let columns: Vec<f32> = inputs.iter().flat_map(|&x| [x; CHANNELS]).collect();
            let columns = Tensor::f32(&columns, &[inputs.len(), CHANNELS]).unwrap();
            pass.state_conv(layer, columns).unwrap();
        }
        pass.commit().unwrap();
        assert_eq!(in_place.digest().unwrap(), by_copy.digest().unwrap());
    }
    in_place.check().unwrap(); // the slot of zeros is one still
}

#[test]
fn a_view_that_is_not_done_leaves_the_states_as_they_were() {
    let mut cache = open(kind());
    run(&mut cache, &[0], &[0], &[3.0]).commit().unwrap();
    let mut pass = cache.begin(&[1], &[0]).unwrap();
    let mut view = pass.state_view(LAYERS - 1, Part::Recurrent).unwrap();
    let mut sequence = view.f32().unwrap().next().unwrap();
    assert_eq!(sequence.before(), [3.0; SIZE]);
    sequence.step(0).1.fill(7.0);
    drop(view);
    pass.commit().unwrap();
    assert_eq!(state(&mut cache, 0, 2), 3.0);
}

#[test]
fn views_of_narrow_states_have_their_bits() {
    for dtype in [DType::F16, DType::BF16] {
        let one = if dtype == DType::F16 { 0x3c00 } else { 0x3f80 };
        let mut cache = open(RecurrentDesc {
            dtype_state: dtype,
            dtype_conv: dtype,
            ..kind()
        });
        let mut pass = cache.begin(&[0], &[0]).unwrap();
        for (part, len) in [(Part::Recurrent, SIZE), (Part::Conv, CHANNELS * CONV)] {
            for layer in 0..LAYERS {
                let mut view = pass.state_view(layer, part).unwrap();
                assert!(view.f32().is_none());
                assert_eq!((view.dtype(), view.slot_len()), (dtype, len));
                let mut sequence = view.bits().unwrap().next().unwrap();
                assert_eq!(sequence.before(), vec![0; len]);
                sequence.step(0).1.fill(one);
                view.done().unwrap();
            }
        }
        pass.commit().unwrap();
        assert_eq!(state(&mut cache, 0, 1), 1.0);
        assert_eq!(columns(&mut cache, 0, 1), [1.0; CONV]);
    }
}

/// Each part has a storage type of its own.
#[test]
fn parts_are_stored_in_their_own_types() {
    let mut cache = open(RecurrentDesc {
        dtype_state: DType::F32,
        dtype_conv: DType::BF16,
        host_checkpoints: true, // as they are here in any case
        ..kind()
    });
    let mut pass = cache.begin(&[0], &[0]).unwrap();
    let dtype = |pass: &mut Pass<'_>, part| pass.state_view(0, part).unwrap().dtype();
    assert_eq!(dtype(&mut pass, Part::Recurrent), DType::F32);
    assert_eq!(dtype(&mut pass, Part::Conv), DType::BF16);
}

/// A reserve pass has the largest layout that so many tokens can have.
#[test]
fn a_reserve_pass_spreads_its_tokens_over_the_sequences() {
    let mut cache = open(RecurrentDesc {
        draft_states: 1,
        ..kind()
    });
    let mut pass = cache.begin_reserve(8).unwrap();
    let layout = pass.state_layout().unwrap();
    let rows: Vec<_> = layout.sequences.iter().map(|s| s.rows.clone()).collect();
    assert_eq!(rows, [0..1, 1..2, 2..4]);
    assert_eq!(layout.order, [0, 3, 6, 1, 4, 7, 2, 5]);
    let mut view = pass.state_view(0, Part::Recurrent).unwrap();
    for mut states in view.f32().unwrap() {
        (0..states.n_rows()).for_each(|row| states.step(row).1.fill(1.0)); // rows to be written
    }
    view.done().unwrap();
    drop(pass);
    cache.check().unwrap();
}

/// Threads share views like slices, and no Debug text contains an address.
#[test]
fn views_of_states_are_shared_and_shown() {
    fn shared<T: Send + Sync + std::fmt::Debug>(value: &T) -> String {
        format!("{value:?}")
    }
    let mut cache = open(kind());
    let mut pass = cache.begin(&[0, 0], &[2, 1]).unwrap();
    let mut view = pass.state_view(1, Part::Conv).unwrap();
    assert_eq!(
        shared(&view),
        "StateView { dtype: F32, layer: 1, part: Conv, .. }"
    );
    let mut states = view.f32().unwrap();
    assert_eq!(shared(&states), "States { sequences: 2, .. }");
    let first = states.next().unwrap();
    assert_eq!(shared(&first), "StateRows { sequence: 2, n_rows: 1, .. }");
}

/// Kernels that take addresses find each row where the types have it.
#[test]
fn slots_lie_where_addresses_say() {
    let mut cache = open(kind());
    run(&mut cache, &[0, 0], &[0, 1], &[3.0, 4.0])
        .commit()
        .unwrap();
    let mut pass = cache.begin(&[1, 1], &[0, 1]).unwrap();
    let layout = pass.state_layout().unwrap();
    let mut view = pass.state_view(0, Part::Recurrent).unwrap();
    let stride = view.slot_stride();
    assert!(stride >= view.slot_len());
    let base = view.as_mut_ptr() as *const f32;
    let slots = view.row_slots().to_vec();
    assert_eq!(slots.len(), 2);
    for (i, mut sequence) in view.f32().unwrap().enumerate() {
        let read_slot = layout.sequences[i].read_slot;
        let place = |slot: i32| base.wrapping_add(slot as usize * stride);
        assert_eq!(sequence.before().as_ptr(), place(read_slot));
        assert_eq!(sequence.step(0).1.as_ptr(), place(slots[i]));
        assert!(!slots.contains(&read_slot));
    }
}

#[test]
#[should_panic]
fn a_row_that_is_none_of_the_sequence_cannot_be_written() {
    let mut cache = open(kind());
    let mut pass = cache.begin(&[0, 0], &[0, 1]).unwrap();
    let mut view = pass.state_view(0, Part::Recurrent).unwrap();
    let mut first = view.f32().unwrap().next().unwrap();
    first.step(1); // that of the second sequence
}

/// Copies of a sequence read one slot, and write two.
#[test]
fn threads_step_sequences_that_share_a_state() {
    let mut cache = open(kind());
    run(&mut cache, &[0], &[0], &[8.0]).commit().unwrap();
    cache.copy_prefix(0, 1, 1).unwrap();
    cache.copy_prefix(0, 2, 1).unwrap();
    let mut pass = cache.begin(&[1; 3], &[0, 1, 2]).unwrap();
    for layer in 0..LAYERS {
        let mut view = pass.state_view(layer, Part::Recurrent).unwrap();
        std::thread::scope(|scope| {
            for (i, mut sequence) in view.f32().unwrap().enumerate() {
                scope.spawn(move || {
                    let (before, after) = sequence.step(0);
                    after.copy_from_slice(&recur(before, i as f32));
                });
            }
        });
        view.done().unwrap();
    }
    pass.commit().unwrap();
    let states = [0, 1, 2].map(|sequence| state(&mut cache, sequence, 2));
    assert_eq!(states, [4.0, 5.0, 6.0]);
}

#[test]
fn errors_of_states_name_what_is_wrong() {
    let device = Device::open("cpu", 1).unwrap();
    let create = |desc: &CacheDesc, kind: RecurrentDesc| {
        Cache::new(&device, desc, &Kind::Recurrent(kind)).map(drop)
    };
    let wrong = Status::INVALID_ARGUMENT;
    for (name, desc) in [
        (
            "n_kv_heads",
            CacheDesc {
                n_kv_heads: 1,
                ..desc()
            },
        ),
        (
            "capacity",
            CacheDesc {
                capacity: 9,
                ..desc()
            },
        ),
        (
            "dtype_k",
            CacheDesc {
                dtype_k: DType::F16,
                ..desc()
            },
        ),
        (
            "dtype_v",
            CacheDesc {
                dtype_v: DType::BF16,
                ..desc()
            },
        ),
    ] {
        fails(create(&desc, kind()), wrong, name);
    }
    fails(
        create(&desc(), RecurrentDesc::default()),
        wrong,
        "state_size",
    );

    let mut cache = open(RecurrentDesc {
        conv_dim: 0,
        ..kind()
    });
    let (mut short, mut long) = ([0.0; SIZE - 1], [0.0; 2 * SIZE]);
    let mut pass = cache.begin(&[0], &[0]).unwrap();
    let into = TensorMut::f32(&mut short, &[1, SIZE - 1]).unwrap();
    let part = Part::Recurrent;
    let shape = Status::INVALID_RECURRENT_SHAPE;
    fails(pass.state_get(0, part, into), shape, "");
    let mut into = TensorMut::f32(&mut long, &[2, SIZE]).unwrap();
    fails(pass.state_get(0, part, into.reborrow()), Status::SHAPE, "");
    fails(pass.state_get(LAYERS, part, into), wrong, "layer 2");
    let from = Tensor::f32(&long, &[1, SIZE]).unwrap();
    fails(pass.state_put(0, Part::Conv, from), wrong, "");
    fails(pass.state_conv(0, from), wrong, "");
    fails(pass.state_view(0, Part::Conv), wrong, "");
    fails(pass.get(0), Status::NOT_SUPPORTED, "");
    drop(pass);

    let desc = CacheDesc {
        n_kv_heads: 1,
        head_dim_k: 8,
        capacity: 8,
        ..desc()
    };
    let causal = Kind::Causal(CausalDesc::default());
    let mut causal = Cache::new(&device, &desc, &causal).unwrap();
    fails(causal.checkpoint_list(0), Status::NOT_SUPPORTED, "");
    let mut pass = causal.begin(&[0], &[0]).unwrap();
    fails(pass.state_layout(), Status::NOT_SUPPORTED, "");
    fails(pass.state_view(0, part), Status::NOT_SUPPORTED, "");
}

#[test]
fn checkpoints_decide_how_much_memory_a_cache_takes() {
    let device = Device::open("cpu", 2).unwrap();
    let large = |checkpoints| RecurrentDesc {
        state_size: 4096, // a page or more
        checkpoints,
        ..kind()
    };
    let bytes = |checkpoints| {
        let kind = large(checkpoints);
        Cache::memory_bytes(&device, &desc(), &Kind::Recurrent(kind)).unwrap()
    };
    assert!(bytes(NONE) < bytes(1) && bytes(1) < bytes(0)); // 0: 24
    assert_eq!(bytes(0), bytes(24));
    assert_eq!(open(large(0)).stats().unwrap().bytes, bytes(0));
}
