//! Any sequence of operations on two or three volumes, against a model: what is read is what was written, in every shape of volume, over
//! restarts, kills, rounds of the store side, checkpoints, deletion and creation.

mod support;

use lamina_contract::{BlockSize, Op, ScoSize};
use lamina_simulation::history::check_reads;
use lamina_simulation::life::{End, Life, Shape, VolumeShape};
use lamina_simulation::oracle::Part;
use lamina_simulation::stamp::Content;
use proptest::prelude::{Just, ProptestConfig, Strategy, any, prop, prop_oneof, proptest};

/// Places are fractions of a volume, so that one action fits every shape.
#[derive(Debug, Clone)]
enum Action {
    Write { volume: usize, at: u16, sectors: u16, template: bool, fua: bool },
    Blocks { volume: usize, at: u16, blocks: u8, template: u8 },
    Zeroes { volume: usize, at: u16, sectors: u16, unmap: bool },
    Discard { volume: usize, at: u16, sectors: u16 },
    Read { volume: usize, at: u16, sectors: u16 },
    Flush { volume: usize },
    Store,
    Restart(End),
    Recreate { volume: usize },
}

fn action() -> impl Strategy<Value = Action> {
    let volume = 0..3_usize;
    let place = (volume.clone(), any::<u16>(), 1..200_u16);
    prop_oneof![
        6 => (place.clone(), any::<bool>(), prop::bool::weighted(0.1))
            .prop_map(|((volume, at, sectors), template, fua)| Action::Write { volume, at, sectors, template, fua }),
        6 => (volume.clone(), any::<u16>(), 1..5_u8, 0..4_u8)
            .prop_map(|(volume, at, blocks, template)| Action::Blocks { volume, at, blocks, template }),
        2 => (place.clone(), any::<bool>()).prop_map(|((volume, at, sectors), unmap)| Action::Zeroes { volume, at, sectors, unmap }),
        2 => place.clone().prop_map(|(volume, at, sectors)| Action::Discard { volume, at, sectors }),
        3 => place.prop_map(|(volume, at, sectors)| Action::Read { volume, at, sectors }),
        2 => volume.clone().prop_map(|volume| Action::Flush { volume }),
        4 => Just(Action::Store),
        1 => Just(Action::Restart(End::Clean)),
        1 => Just(Action::Restart(End::Killed)),
        1 => volume.prop_map(|volume| Action::Recreate { volume }),
    ]
}

fn shape() -> impl Strategy<Value = Shape> {
    let volume = (1..40_usize, prop::sample::select(vec![4096, 8192, 65536]), prop::sample::select(vec![1_u64 << 20, 4 << 20]));
    let volumes = prop::collection::vec(volume, 2..=3);
    (volumes, any::<bool>(), prop::option::of(0..20_u64)).prop_map(|(volumes, cache, checkpoint_after)| {
        let volume = |(blocks, block, sco): (usize, u64, u64)| VolumeShape {
            blocks,
            block_size: BlockSize::new(block).expect("a size"),
            sco_size: ScoSize::new(sco).expect("a size"),
        };
        let mut shape = Shape::of(&volumes.into_iter().map(volume).collect::<Vec<_>>());
        shape.cache_bytes = if cache { 4 << 20 } else { 0 };
        shape.checkpoint_after = checkpoint_after;
        shape
    })
}

struct Play<'a> {
    life: Life,
    shape: &'a Shape,
}

impl Play<'_> {
    fn range(&self, volume: usize, at: u16, sectors: u16) -> (usize, std::ops::Range<usize>) {
        let volume = volume % self.shape.volumes.len();
        let all = self.shape.volumes[volume].sectors();
        let start = usize::from(at) * all / (usize::from(u16::MAX) + 1);
        (volume, start..(start + usize::from(sectors)).min(all))
    }

    fn act(&mut self, action: &Action) {
        match action {
            Action::Write { volume, at, sectors, template, fua } => {
                let (volume, range) = self.range(*volume, *at, *sectors);
                // A template is the same at the same place of any block only if it is whole; by sectors it is just content.
                let content = if *template { Content::template(9) } else { self.life.fresh() };
                let part = Part { sector: range.start, contents: vec![content; range.len()] };
                self.life.write(volume, &[part], *fua).expect("a healthy node writes");
            }
            Action::Blocks { volume, at, blocks, template } => {
                let (volume, range) = self.range(*volume, *at, 1);
                let shape = self.shape.volumes[volume];
                let first = range.start / shape.per_block();
                let count = usize::from(*blocks).min(shape.blocks - first);
                let mut parts = Vec::new();
                for block in first..first + count {
                    let content = if *template > 0 { Content::template(u32::from(*template)) } else { self.life.fresh() };
                    parts.push(Part { sector: block * shape.per_block(), contents: vec![content; shape.per_block()] });
                }
                self.life.write(volume, &parts, false).expect("a healthy node writes");
            }
            Action::Zeroes { volume, at, sectors, unmap } => {
                let (volume, range) = self.range(*volume, *at, *sectors);
                self.life.zero(volume, Op::WriteZeroes { unmap: *unmap }, range).expect("a healthy node zeroes");
            }
            Action::Discard { volume, at, sectors } => {
                let (volume, range) = self.range(*volume, *at, *sectors);
                let per_block = self.shape.volumes[volume].per_block();
                // What a discard of a part of a block does is the device's choice, so only whole blocks are discarded.
                let (start, end) = (range.start / per_block * per_block, range.end.div_ceil(per_block) * per_block);
                self.life.zero(volume, Op::Discard, start..end).expect("a healthy node discards");
            }
            Action::Read { volume, at, sectors } => {
                let (volume, range) = self.range(*volume, *at, *sectors);
                let model = &self.life.models()[volume];
                let bytes = self.life.read_sectors(volume, range.clone()).expect("a healthy node reads");
                assert_eq!(model.read_from(range.start, &bytes).expect("stamps"), model.now()[range]);
            }
            Action::Flush { volume } => {
                let (volume, _) = self.range(*volume, 0, 1);
                self.life.flush(volume).expect("a healthy node flushes");
            }
            Action::Store => self.life.step().expect("a healthy store takes everything"),
            Action::Restart(end) => {
                self.life.end(*end);
                self.life.open().unwrap_or_else(|v| panic!("{v}"));
                check_reads(&self.life).unwrap_or_else(|v| panic!("{v}"));
            }
            Action::Recreate { volume } => {
                let (volume, _) = self.range(*volume, 0, 1);
                self.life.recreate(volume).expect("a healthy node deletes and creates");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, max_shrink_iters: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_read_is_what_was_written(shape in shape(), actions in prop::collection::vec(action(), 1..60)) {
        let (world, past) = Life::create(&shape).unwrap_or_else(|v| panic!("{v}"));
        let life = Life::begin(&shape, &world, &past).unwrap_or_else(|v| panic!("{v}"));
        let mut play = Play { life, shape: &shape };
        actions.iter().for_each(|action| play.act(action));
        check_reads(&play.life).unwrap_or_else(|v| panic!("{v}"));
        // Everything to the store, and everything from the store.
        play.life.step().expect("a healthy store takes everything");
        check_reads(&play.life).unwrap_or_else(|v| panic!("{v}"));
    }
}

#[test]
fn a_deleted_volume_leaves_nothing_in_the_store_and_its_journal_does_not_replay() {
    let shape = Shape::of(&[support::small_volume(4); 2]);
    let (world, past) = Life::create(&shape).unwrap_or_else(|v| panic!("{v}"));
    let mut life = Life::begin(&shape, &world, &past).unwrap_or_else(|v| panic!("{v}"));
    let write = |life: &mut Life| {
        let contents = vec![life.fresh(); 8];
        life.write(0, &[Part { sector: 0, contents }], false).expect("a healthy node writes");
    };
    write(&mut life);
    life.step().expect("stored");
    write(&mut life);
    let namespaces = |life: &Life| {
        let objects = life.store().objects();
        let mut all: Vec<String> = objects.keys().filter_map(|k| k.parts().next().map(|p| p.as_ref().to_owned())).collect();
        all.dedup();
        all
    };
    let before = namespaces(&life);
    life.recreate(0).expect("a healthy node deletes and creates");
    life.run(async { tokio::time::sleep(std::time::Duration::from_secs(1)).await });
    let after = namespaces(&life);
    assert_eq!(after.len(), 2, "{after:?}");
    assert_eq!(after.iter().filter(|n| before.contains(n)).count(), 1, "one namespace is gone, one is new: {before:?} {after:?}");
    life.end(End::Killed);
    life.open().unwrap_or_else(|v| panic!("{v}"));
    check_reads(&life).unwrap_or_else(|v| panic!("{v}"));
}
