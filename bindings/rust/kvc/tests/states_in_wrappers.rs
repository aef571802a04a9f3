//! States beside keys and values, and beside other states, in a wrapper.
use kvc::*;

const DIM: usize = 8;
const SIZE: usize = 4;

fn layer(kind: Kind) -> Layer {
    let common = CacheDesc {
        max_sequences: 2,
        max_batch: 4,
        ..Default::default()
    };
    let desc = match kind {
        Kind::Recurrent(_) => common,
        _ => CacheDesc {
            n_kv_heads: 1,
            head_dim_k: DIM as i32,
            capacity: 32,
            ..common
        },
    };
    Layer { desc, kind }
}

fn states(state_size: usize, draft_states: i32) -> Layer {
    layer(Kind::Recurrent(RecurrentDesc {
        state_size: state_size as i64,
        draft_states,
        checkpoint_interval: 4,
        checkpoint_min_pos: NONE,
        ..Default::default()
    }))
}

fn full() -> Layer {
    layer(Kind::Causal(CausalDesc::default()))
}

fn put(layers: &mut Layers<'_>, layer: i32, value: f32) {
    let rows = [value; DIM];
    let rows = Tensor::f32(&rows, &[1, 1, DIM]).unwrap();
    layers.put(layer, rows, rows).unwrap();
}

/// Adds 1 to the state of the only sequence of the pass, in place.
fn step(layers: &mut Layers<'_>, layer: i32) {
    let mut view = layers.state_view(layer, Part::Recurrent).unwrap();
    let mut states = view.f32().unwrap().next().unwrap();
    let (before, row) = states.step(0);
    for (x, before) in row.iter_mut().zip(before) {
        *x = before + 1.0;
    }
    view.done().unwrap();
}

fn state(model: &mut Cache, layer: i32, sequence: i32, at: i32) -> f32 {
    let mut state = [9.0; SIZE];
    let into = TensorMut::f32(&mut state, &[SIZE]).unwrap();
    let part = Part::Recurrent;
    model.state_gather(layer, part, sequence, at, into).unwrap();
    assert_eq!(state, [state[0]; SIZE]);
    state[0]
}

#[test]
fn a_hybrid_continues_at_its_checkpoints() {
    let device = Device::open("cpu", 1).unwrap();
    let (states, full) = (states(SIZE, 0), full());
    let mut model = Cache::from_layers(&device, [&states, &states, &full]).unwrap();
    for position in 0..10 {
        // In place every pass has slots of its own.
        let mut pass = model.begin(&[position], &[0]).unwrap();
        (0..2).for_each(|layer| step(&mut pass, layer));
        put(&mut pass, 2, 1.0);
        pass.commit().unwrap();
    }
    assert_eq!(model.checkpoint_list(0), Ok(vec![1, 5, 9]));
    assert_eq!(model.can_resume(0, 8), Ok(5));
    assert_eq!(model.copy_prefix(0, 1, 8), Ok(5));
    assert_eq!(model.children()[1].sequence(1).unwrap().next, 5);
    assert_eq!(state(&mut model, 1, 1, 5), 5.0);
    model.checkpoint_take(1).unwrap();
    assert_eq!(model.resume(0, 4), Ok(1));
    let mut pass = model.begin(&[1], &[0]).unwrap();
    (0..2).for_each(|layer| step(&mut pass, layer));
    drop(pass);
    assert_eq!(state(&mut model, 0, 0, 1), 1.0);
    assert_eq!(model.sequence(0).unwrap().next, 1);
    model.check().unwrap();
}

/// Factors of RoPE have no length for a layer without keys, so the library says what it lacks.
#[test]
fn rope_of_a_layer_of_states_is_not_supported() {
    let device = Device::open("cpu", 1).unwrap();
    let (states, full) = (states(SIZE, 0), full());
    let mut model = Cache::from_layers(&device, [&states, &full]).unwrap();
    let factors = [1.0; DIM / 2];
    let desc = RopeDesc {
        frequency_factors: Some(&factors),
        ..Default::default()
    };
    for (begin, end) in [(0, 1), (0, 2)] {
        let refused = model.bind_rope(begin, end, &desc).unwrap_err();
        assert_eq!(refused.status, Status::NOT_SUPPORTED, "{refused}");
    }
    model.bind_rope(1, 2, &desc).unwrap();
}

#[test]
fn a_thread_steps_states_while_another_puts_keys() {
    let device = Device::open("cpu", 1).unwrap();
    let (states, full) = (states(SIZE, 0), full());
    let mut model = Cache::from_layers(&device, [&states, &full]).unwrap();
    for position in 0..20 {
        let mut pass = model.begin(&[position], &[1]).unwrap();
        let mut children = pass.children_mut();
        let (mut states, mut full) = (children.next().unwrap(), children.next().unwrap());
        std::thread::scope(|scope| {
            scope.spawn(move || step(&mut states, 0));
            scope.spawn(move || put(&mut full, 0, 1.0));
        });
        drop(children);
        pass.commit().unwrap();
    }
    assert_eq!(state(&mut model, 0, 1, 20), 20.0);
}

/// A call on the batch reaches the only child with states, else a child by itself; a call on a layer
/// reaches its owner, whose slots are its own.
#[test]
fn two_children_of_states_are_told_apart_by_layer() {
    let device = Device::open("cpu", 1).unwrap();
    let (large, small) = (states(6, 1), states(SIZE, 0));
    let mut model = Cache::from_layers(&device, [&large, &small]).unwrap();
    let mut pass = model.begin(&[0, 1], &[0, 0]).unwrap();
    let refused = pass.state_layout().unwrap_err();
    assert_eq!(refused.status, Status::NOT_SUPPORTED, "{refused}");
    let rows = pass
        .children_mut()
        .map(|child| child.state_layout().unwrap().n_rows);
    assert_eq!(rows.collect::<Vec<_>>(), [2, 1]);
    for (layer, n_rows, len) in [(0, 2, 6), (1, 1, SIZE)] {
        let mut view = pass.state_view(layer, Part::Recurrent).unwrap();
        assert_eq!((view.slot_len(), view.row_slots().len()), (len, n_rows));
        let mut states = view.f32().unwrap().next().unwrap();
        assert_eq!((states.sequence(), states.n_rows()), (0, n_rows));
        for row in 0..n_rows {
            states.step(row).1.fill((10 * layer + row as i32) as f32);
        }
        view.done().unwrap();
    }
    for (layer, want) in [(0, [1.0; 6]), (1, [10.0; 6])] {
        let mut state = [9.0; 6];
        let len = if layer == 0 { 6 } else { SIZE };
        let into = TensorMut::f32(&mut state, &[len]).unwrap();
        pass.state_gather(layer, Part::Recurrent, 0, 2, into)
            .unwrap();
        assert_eq!(state[..len], want[..len]); // of the last token
    }
    let refused = pass.state_view(2, Part::Recurrent).unwrap_err();
    assert_eq!(refused.status, Status::INVALID_ARGUMENT, "{refused}");
    assert!(refused.message.contains("layer 2"), "{refused}");
    pass.commit().unwrap();
}
