//! A manifest that is decided before its TLog is stored is found (invariant 5, Order). Planting is for the whole process, so each mutant has a program of its own.

mod support;

use lamina_engine::mutant::Mutant;

#[test]
fn the_planted_bug_manifest_before_tlog_is_found() {
    support::assert_found(Mutant::ManifestBeforeTlog);
}
