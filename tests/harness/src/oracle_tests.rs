//! The oracle is proven against a model disk that breaks each promise on purpose.

use lamina_contract::units::{Lba, SectorCount};

use super::{Crash, OpId, Oracle, Paint, Taken, Violation};
use crate::stamp::{Content, SECTOR, TemplateId, paint};

const VOLUME: u64 = 0xabc;

/// An image that applies chosen operations in chosen order.
struct Model {
    oracle: Oracle,
    image: Vec<u8>,
}

impl Model {
    fn new(blocks: u64) -> Self {
        let sectors = SectorCount(blocks * 8);
        Self { oracle: Oracle::new(VOLUME, sectors), image: vec![0; sectors.0 as usize * SECTOR] }
    }

    fn issue(&mut self, start: u64, sectors: u64, kind: Paint) -> OpId {
        self.oracle.issue(Lba(start), SectorCount(sectors), kind)
    }

    fn apply(&mut self, op: OpId, start: u64, sectors: u64) {
        for lba in start..start + sectors {
            let content = self.oracle.content(op, Lba(lba));
            self.put(lba, content);
        }
    }

    fn put(&mut self, lba: u64, content: Content) {
        paint(VOLUME, Lba(lba), content, &mut self.image[lba as usize * SECTOR..(lba as usize + 1) * SECTOR]);
    }

    fn written(&mut self, start: u64, sectors: u64) -> OpId {
        let op = self.issue(start, sectors, Paint::Unique);
        self.apply(op, start, sectors);
        self.oracle.acknowledge(op);
        op
    }

    fn promised(&mut self, start: u64, sectors: u64) -> OpId {
        let op = self.issue(start, sectors, Paint::Unique);
        self.oracle.acknowledge(op);
        op
    }

    fn flush(&mut self) {
        let issued = self.oracle.moment();
        self.oracle.flushed(issued);
    }

    fn check(&mut self, crash: Crash) -> Vec<Violation> {
        let image = std::mem::take(&mut self.image);
        let verdict = self.oracle.check(crash, &image);
        self.image = image;
        verdict.violations
    }
}

#[test]
fn an_honest_disk_passes_again_and_again() {
    let mut model = Model::new(16);
    for round in 0..3 {
        model.written(round, 8);
        model.written(3, 5);
        let zero = model.issue(64, 16, Paint::Zero);
        model.apply(zero, 64, 16);
        model.oracle.acknowledge(zero);
        let shared = model.issue(80, 16, Paint::Template(TemplateId(round)));
        model.apply(shared, 80, 16);
        model.oracle.acknowledge(shared);
        model.issue(100, 8, Paint::Unique);
        assert_eq!(model.check(Crash::Kill), []);
        assert_eq!(model.check(Crash::Power), []);
    }
}

#[test]
fn a_lost_acknowledged_write_is_found_after_a_kill() {
    let mut model = Model::new(4);
    model.written(0, 8);
    let lost = model.promised(0, 8);
    assert!(matches!(model.check(Crash::Kill).as_slice(), [Violation::Lost { op, .. }, ..] if *op == lost));
}

#[test]
fn a_lost_discard_is_found_too() {
    let mut model = Model::new(4);
    model.written(0, 8);
    let lost = model.issue(0, 8, Paint::Zero);
    model.oracle.acknowledge(lost);
    assert!(matches!(model.check(Crash::Kill).as_slice(), [Violation::Lost { op, .. }, ..] if *op == lost));
}

#[test]
fn an_unacknowledged_write_may_be_old_or_new_but_not_torn() {
    for applied in [0, 8, 3] {
        let mut model = Model::new(4);
        model.written(0, 8);
        let op = model.issue(0, 8, Paint::Unique);
        model.apply(op, 0, applied);
        let violations = model.check(Crash::Kill);
        match applied {
            3 => assert_eq!(violations, [Violation::Torn { block: Lba(0), op }]),
            _ => assert_eq!(violations, []),
        }
    }
}

#[test]
fn power_takes_unflushed_writes_only() {
    let mut model = Model::new(4);
    model.promised(0, 8);
    assert_eq!(model.check(Crash::Power), [], "never flushed");
    let lost = model.promised(8, 8);
    model.flush();
    assert!(matches!(model.check(Crash::Power).as_slice(), [Violation::Lost { op, .. }] if *op == lost));
}

#[test]
fn a_flush_covers_only_what_was_acknowledged_before_it_was_issued() {
    let mut model = Model::new(4);
    let issued = model.oracle.moment();
    model.promised(0, 8);
    model.oracle.flushed(issued);
    assert_eq!(model.check(Crash::Power), []);
}

#[test]
fn survivors_that_are_no_prefix_are_found() {
    let mut model = Model::new(4);
    let absent = model.promised(0, 8);
    let present = model.written(16, 8);
    assert_eq!(model.check(Crash::Power), [Violation::NotAPrefix { present, absent }]);
    let mut model = Model::new(4);
    model.written(0, 8);
    model.promised(16, 8);
    assert_eq!(model.check(Crash::Power), []);
}

#[test]
fn of_two_writes_in_flight_together_either_may_survive_alone() {
    let mut model = Model::new(4);
    let (first, second) = (model.issue(0, 8, Paint::Unique), model.issue(16, 8, Paint::Unique));
    model.oracle.acknowledge(first);
    model.oracle.acknowledge(second);
    model.apply(second, 16, 8);
    let image = std::mem::take(&mut model.image);
    let verdict = model.oracle.check(Crash::Power, &image);
    assert_eq!((verdict.violations.as_slice(), verdict.taken, verdict.swapped), ([].as_slice(), 1, 1));
}

#[test]
fn a_store_alone_keeps_what_is_older_than_its_bound() {
    let mut model = Model::new(4);
    let lost = model.promised(0, 8);
    let stored = model.oracle.moment();
    model.promised(8, 8);
    assert!(matches!(model.check(Crash::StoreOnly { stored }).as_slice(), [Violation::Lost { op, .. }] if *op == lost));
}

#[test]
fn misdirected_garbled_and_resurrected_sectors_are_found() {
    let mut model = Model::new(4);
    let first = model.written(0, 8);
    model.written(0, 8);
    assert_eq!(model.check(Crash::Kill), []);
    model.put(0, Content::Unique(first));
    assert!(matches!(model.check(Crash::Kill).as_slice(), [Violation::Unexplained { lba: Lba(0), .. }]));
    let copy = model.image[..SECTOR].to_vec();
    model.image[SECTOR..2 * SECTOR].copy_from_slice(&copy);
    model.image[5 * SECTOR + 100] ^= 1;
    let violations = model.check(Crash::Kill);
    assert!(
        matches!(violations.as_slice(), [Violation::Damaged { lba: Lba(1), .. }, Violation::Damaged { lba: Lba(5), .. }]),
        "{violations:?}"
    );
}

#[test]
fn writes_in_flight_together_may_land_in_either_order() {
    for first_wins in [true, false] {
        let mut model = Model::new(4);
        let (one, two) = (model.issue(0, 8, Paint::Unique), model.issue(4, 8, Paint::Unique));
        let order = if first_wins { [(two, 4), (one, 0)] } else { [(one, 0), (two, 4)] };
        for (op, start) in order {
            model.apply(op, start, 8);
        }
        model.oracle.acknowledge(one);
        model.oracle.acknowledge(two);
        assert_eq!(model.check(Crash::Kill), []);
    }
}

#[test]
fn a_read_sees_nothing_older_than_what_was_acknowledged() {
    let mut model = Model::new(4);
    model.written(0, 8);
    let stale = model.image[..8 * SECTOR].to_vec();
    let during = model.oracle.moment();
    model.written(0, 8);
    let after = model.oracle.moment();
    assert_eq!(model.oracle.check_read(Lba(0), &stale, during), []);
    assert!(!model.oracle.check_read(Lba(0), &stale, after).is_empty());
    let fresh = model.image[..8 * SECTOR].to_vec();
    assert_eq!(model.oracle.check_read(Lba(0), &fresh, after), []);
}

/// A model whose block 0 has a value from each time: before the snapshot was asked for (in `image`), and after it was answered.
fn cut_between_two_writes() -> (Model, Taken, Vec<u8>, [OpId; 2]) {
    let mut model = Model::new(4);
    let early = model.written(0, 8);
    let asked = model.oracle.moment();
    let cut = model.image.clone();
    let answered = Some(model.oracle.moment());
    let late = model.written(0, 8);
    (model, Taken { asked, answered }, cut, [early, late])
}

#[test]
fn an_honest_snapshot_passes_and_the_volume_is_checked_after_it_as_before() {
    let (mut model, taken, cut, _) = cut_between_two_writes();
    let verdict = model.oracle.check_snapshot(taken, &cut);
    assert_eq!((verdict.violations.as_slice(), verdict.durable), ([].as_slice(), 1));
    assert_eq!(model.check(Crash::Kill), []);
}

#[test]
fn a_snapshot_that_lacks_what_was_acknowledged_before_it_is_found() {
    let (model, taken, cut, [early, _]) = cut_between_two_writes();
    let violations = model.oracle.check_snapshot(taken, &vec![0; cut.len()]).violations;
    assert!(matches!(violations.as_slice(), [Violation::Lost { op, .. }, ..] if *op == early), "{violations:?}");
}

#[test]
fn a_snapshot_that_has_what_was_issued_after_its_answer_is_found() {
    let (model, taken, _, [_, late]) = cut_between_two_writes();
    let violations = model.oracle.check_snapshot(taken, &model.image).violations;
    let later = |broken: &Violation| matches!(broken, Violation::Later { found, .. } if *found == Content::Unique(late));
    assert!(violations.len() == 8 && violations.iter().all(later), "{violations:?}");
    // Nobody heard the answer: then it may have been taken as late as that.
    assert_eq!(model.oracle.check_snapshot(Taken { answered: None, ..taken }, &model.image).violations, []);
}

#[test]
fn a_snapshot_may_have_what_was_in_flight_while_it_was_taken_but_only_a_prefix_of_it() {
    let mut model = Model::new(4);
    let asked = model.oracle.moment();
    let first = model.written(0, 8);
    let after_first = model.image.clone();
    let second = model.issue(16, 8, Paint::Unique);
    let mut only_second = vec![0; model.image.len()];
    std::mem::swap(&mut model.image, &mut only_second);
    model.apply(second, 16, 8);
    std::mem::swap(&mut model.image, &mut only_second);
    model.oracle.acknowledge(second);
    let taken = Taken { asked, answered: Some(model.oracle.moment()) };
    assert_eq!(model.oracle.check_snapshot(taken, &vec![0; after_first.len()]).violations, []);
    assert_eq!(model.oracle.check_snapshot(taken, &after_first).violations, []);
    let violations = model.oracle.check_snapshot(taken, &only_second).violations;
    assert_eq!(violations, [Violation::NotAPrefix { present: second, absent: first }]);
}
