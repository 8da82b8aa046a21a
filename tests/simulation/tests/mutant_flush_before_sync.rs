//! A flush that is answered without an fdatasync is found. Planting is for the whole process, so each mutant has a program of its own.

mod support;

use lamina_engine::mutant::Mutant;

#[test]
fn the_planted_bug_flush_before_sync_is_found() {
    support::assert_found(Mutant::FlushBeforeSync);
}
