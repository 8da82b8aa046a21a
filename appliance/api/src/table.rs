//! The table of routes: what there is, and the least role of each. Router, roles, query checks and OpenAPI are made of it.

use crate::audit::AuditList;
use crate::data::{ExtentList, MAX_DATA_BYTES};
use crate::job::{Job, JobList, JobState, MAX_WAIT_SECONDS};
use crate::page::MAX_LIMIT;
use crate::paths;
use crate::role::{Least, Role};
use crate::route::{Body, Content, Query, QueryKind, Reach, Reply, Route, Shape};
use crate::schedule::{ChangeSchedule, CreateSchedule, Schedule, ScheduleList};
use crate::snapshot::{ChangeSnapshot, CreateClones, CreateSnapshot, Rollback, RolledBack, Snapshot, SnapshotList};
use crate::status::{Status, Version};
use crate::target::TargetList;
use crate::token::{CreateToken, NewToken, TokenList};
use crate::vm::{ChangeVm, CreateVm, CreateVmSnapshot, RolledBackVm, SetTemplate, Vm, VmList, VmSnapshot, VmSnapshotList};
use crate::volume::{ChangeVolume, CreateVolume, MAX_SIZE_BYTES, Volume, VolumeList};
use crate::{overview_calls as overview, vm_calls as vms, volume_calls as volumes};

const KNOWN: Least = Least::Known;
const VIEWER: Least = Least::Role(Role::Viewer);
const OPERATOR: Least = Least::Role(Role::Operator);
const ADMIN: Least = Least::Role(Role::Admin);

const LIMIT: Query = number("limit", 1, MAX_LIMIT as u64, "Entries at most; 100 when absent.");
const CURSOR: Query = Query {
    name: "cursor",
    kind: QueryKind::Text(512),
    required: false,
    words: "Where the page begins: `next` of the page before.",
};
const PAGE: &[Query] = &[LIMIT, CURSOR];

const NOTHING: &[Reply] = &[Reply { status: 204, content: Content::Nothing }];

/// All routes but `/metrics` on its own address, in the order in which they are described.
pub const ROUTES: &[Route] = &[
    // The appliance
    Route::get(paths::VERSION, "show-version", "Release and interface.", overview::version)
        .least(KNOWN)
        .reach(Reach::Free)
        .answers(&[json(200, Shape::of::<Version>())]),
    Route::get(paths::OPENAPI, "show-openapi", "This description.", overview::openapi)
        .least(KNOWN)
        .reach(Reach::Free)
        .answers(&[Reply { status: 200, content: Content::AnyJson }]),
    Route::get(paths::STATUS, "show-status", "Everything at a glance.", overview::status)
        .least(VIEWER)
        .answers(&[json(200, Shape::of::<Status>())]),
    Route::get(paths::TARGETS, "list-targets", "The members of the store.", overview::targets)
        .least(VIEWER)
        .answers(&[json(200, Shape::of::<TargetList>())]),
    Route::get(paths::METRICS, "show-metrics", "Prometheus text.", overview::metrics)
        .least(VIEWER)
        .answers(&[Reply { status: 200, content: Content::Metrics }]),
    // Volumes
    Route::get(paths::VOLUMES, "list-volumes", "Volumes by name.", volumes::list)
        .least(VIEWER)
        .reach(Reach::Inside)
        .queries(&[LIMIT, CURSOR, LABEL, flag("template", "Only templates, or only others.")])
        .answers(&[json(200, Shape::of::<VolumeList>())]),
    Route::post(paths::VOLUMES, "create-volume", "Makes a volume and attaches it.", volumes::create)
        .least(OPERATOR)
        .reach(Reach::Inside)
        .takes(Body::Json(Shape::of::<CreateVolume>()))
        .answers(&[json(201, Shape::of::<Volume>())])
        .tagged(),
    Route::get(paths::VOLUME, "show-volume", "One volume.", volumes::show)
        .least(VIEWER)
        .reach(Reach::Volume)
        .answers(&[json(200, Shape::of::<Volume>())])
        .tagged(),
    Route::patch(paths::VOLUME, "change-volume", "Resizes, labels, sets limits, makes a template.", volumes::change)
        .least(OPERATOR)
        .reach(Reach::Volume)
        .takes(Body::Json(Shape::of::<ChangeVolume>()))
        .answers(&[json(200, Shape::of::<Volume>())])
        .tagged(),
    Route::delete(paths::VOLUME, "delete-volume", "Deletes a volume that no guest uses and no clone needs.", volumes::delete)
        .least(ADMIN)
        .reach(Reach::Volume)
        .queries(&[flag("snapshots", "Its snapshots too; without, a volume that has some is not deleted.")])
        .answers(NOTHING)
        .tagged(),
    Route::post(
        paths::VOLUME_ATTACH,
        "attach-volume",
        "Serves a volume on its socket, now and after each restart.",
        volumes::attach,
    )
    .least(OPERATOR)
    .reach(Reach::Volume)
    .answers(&[json(200, Shape::of::<Volume>())]),
    Route::post(paths::VOLUME_DETACH, "detach-volume", "Stops serving a volume.", volumes::detach)
        .least(OPERATOR)
        .reach(Reach::Volume)
        .queries(&[flag("force", "Although a guest uses it, which loses its disk; without, that is refused.")])
        .answers(&[json(200, Shape::of::<Volume>())]),
    Route::get(paths::SNAPSHOTS, "list-snapshots", "A volume's snapshots by name.", volumes::list_snapshots)
        .least(VIEWER)
        .reach(Reach::Volume)
        .queries(PAGE)
        .answers(&[json(200, Shape::of::<SnapshotList>())]),
    Route::post(paths::SNAPSHOTS, "take-snapshot", "Takes a snapshot of a volume, now.", volumes::take_snapshot)
        .least(OPERATOR)
        .reach(Reach::Volume)
        .takes(Body::Json(Shape::of::<CreateSnapshot>()))
        .answers(&[json(201, Shape::of::<Snapshot>())])
        .tagged(),
    Route::get(paths::SNAPSHOT, "show-snapshot", "One snapshot.", volumes::show_snapshot)
        .least(VIEWER)
        .reach(Reach::Volume)
        .answers(&[json(200, Shape::of::<Snapshot>())])
        .tagged(),
    Route::patch(paths::SNAPSHOT, "change-snapshot", "Describes, labels, pins a snapshot.", volumes::change_snapshot)
        .least(OPERATOR)
        .reach(Reach::Volume)
        .takes(Body::Json(Shape::of::<ChangeSnapshot>()))
        .answers(&[json(200, Shape::of::<Snapshot>())])
        .tagged(),
    Route::delete(
        paths::SNAPSHOT,
        "delete-snapshot",
        "Deletes a snapshot that is not pinned and no clone needs.",
        volumes::delete_snapshot,
    )
    .least(OPERATOR)
    .reach(Reach::Volume)
    .answers(NOTHING)
    .tagged(),
    Route::post(paths::VOLUME_ROLLBACK, "rollback-volume", "Takes a volume back to a snapshot or a moment.", volumes::rollback)
        .least(OPERATOR)
        .reach(Reach::Volume)
        .takes(Body::Json(Shape::of::<Rollback>()))
        .answers(&[json(200, Shape::of::<RolledBack>()), json(202, Shape::of::<Job>())]),
    Route::post(paths::VOLUME_CLONES, "clone-volume", "Makes clones of a volume.", volumes::clone)
        .least(OPERATOR)
        .reach(Reach::Volume)
        .takes(Body::Json(Shape::of::<CreateClones>()))
        .answers(&[json(202, Shape::of::<Job>())]),
    Route::post(paths::VOLUME_FLATTEN, "flatten-volume", "Makes a clone independent of its parent.", volumes::flatten)
        .least(OPERATOR)
        .reach(Reach::Volume)
        .answers(&[json(202, Shape::of::<Job>())]),
    Route::get(paths::VOLUME_EXTENTS, "list-volume-extents", "Runs of a volume that hold data.", volumes::extents)
        .least(OPERATOR)
        .reach(Reach::Volume)
        .queries(&[number("from", 0, MAX_SIZE_BYTES, "The byte to begin at; 0 when absent."), LIMIT])
        .answers(&[json(200, Shape::of::<ExtentList>())]),
    Route::get(paths::VOLUME_DATA, "read-volume-data", "Bytes of a volume that no guest is connected to.", volumes::read_data)
        .least(OPERATOR)
        .reach(Reach::Volume)
        .queries(&[OFFSET, required(number("length", 512, MAX_DATA_BYTES, "How many bytes, a multiple of 512."))])
        .answers(&[Reply { status: 200, content: Content::Bytes }]),
    Route::put(
        paths::VOLUME_DATA,
        "write-volume-data",
        "Writes bytes of a volume that no guest is connected to.",
        volumes::write_data,
    )
    .least(OPERATOR)
    .reach(Reach::Volume)
    .queries(&[OFFSET])
    .takes(Body::Bytes)
    .answers(NOTHING),
    // VMs
    Route::get(paths::VMS, "list-vms", "VMs by name.", vms::list)
        .least(VIEWER)
        .queries(PAGE)
        .answers(&[json(200, Shape::of::<VmList>())]),
    Route::post(paths::VMS, "create-vm", "Makes a VM of volumes that are there.", vms::create)
        .least(OPERATOR)
        .takes(Body::Json(Shape::of::<CreateVm>()))
        .answers(&[json(201, Shape::of::<Vm>())])
        .tagged(),
    Route::get(paths::VM, "show-vm", "One VM.", vms::show).least(VIEWER).answers(&[json(200, Shape::of::<Vm>())]).tagged(),
    Route::patch(paths::VM, "change-vm", "Changes a VM's labels or shape.", vms::change)
        .least(OPERATOR)
        .takes(Body::Json(Shape::of::<ChangeVm>()))
        .answers(&[json(200, Shape::of::<Vm>())])
        .tagged(),
    Route::delete(paths::VM, "delete-vm", "Deletes a VM.", vms::delete)
        .least(ADMIN)
        .queries(&[flag("volumes", "Its volumes and their snapshots too; without, they stay.")])
        .answers(NOTHING)
        .tagged(),
    Route::get(paths::VM_SNAPSHOTS, "list-vm-snapshots", "A VM's snapshots by name.", vms::list_snapshots)
        .least(VIEWER)
        .queries(PAGE)
        .answers(&[json(200, Shape::of::<VmSnapshotList>())]),
    Route::post(paths::VM_SNAPSHOTS, "take-vm-snapshot", "Takes a snapshot of all disks at one barrier.", vms::take_snapshot)
        .least(OPERATOR)
        .takes(Body::Json(Shape::of::<CreateVmSnapshot>()))
        .answers(&[json(201, Shape::of::<VmSnapshot>())])
        .tagged(),
    Route::get(paths::VM_SNAPSHOT, "show-vm-snapshot", "One snapshot of a VM.", vms::show_snapshot)
        .least(VIEWER)
        .answers(&[json(200, Shape::of::<VmSnapshot>())])
        .tagged(),
    Route::delete(paths::VM_SNAPSHOT, "delete-vm-snapshot", "Deletes the disks' snapshots of that name.", vms::delete_snapshot)
        .least(OPERATOR)
        .answers(NOTHING)
        .tagged(),
    Route::post(paths::VM_ROLLBACK, "rollback-vm", "Takes all disks of a VM back.", vms::rollback)
        .least(OPERATOR)
        .takes(Body::Json(Shape::of::<Rollback>()))
        .answers(&[json(200, Shape::of::<RolledBackVm>()), json(202, Shape::of::<Job>())]),
    Route::post(paths::VM_CLONES, "clone-vm", "Makes clones of a VM with its volumes.", vms::clone)
        .least(OPERATOR)
        .takes(Body::Json(Shape::of::<CreateClones>()))
        .answers(&[json(202, Shape::of::<Job>())]),
    Route::post(paths::VM_TEMPLATE, "set-vm-template", "Makes a VM a template, or a machine again.", vms::set_template)
        .least(OPERATOR)
        .takes(Body::Json(Shape::of::<SetTemplate>()))
        .answers(&[json(200, Shape::of::<Vm>())]),
    // Schedules
    Route::get(paths::SCHEDULES, "list-schedules", "Schedules by name.", vms::list_schedules)
        .least(VIEWER)
        .queries(PAGE)
        .answers(&[json(200, Shape::of::<ScheduleList>())]),
    Route::post(paths::SCHEDULES, "create-schedule", "Makes a schedule.", vms::create_schedule)
        .least(ADMIN)
        .takes(Body::Json(Shape::of::<CreateSchedule>()))
        .answers(&[json(201, Shape::of::<Schedule>())])
        .tagged(),
    Route::get(paths::SCHEDULE, "show-schedule", "One schedule.", vms::show_schedule)
        .least(VIEWER)
        .answers(&[json(200, Shape::of::<Schedule>())])
        .tagged(),
    Route::patch(paths::SCHEDULE, "change-schedule", "Changes a schedule.", vms::change_schedule)
        .least(ADMIN)
        .takes(Body::Json(Shape::of::<ChangeSchedule>()))
        .answers(&[json(200, Shape::of::<Schedule>())])
        .tagged(),
    Route::delete(paths::SCHEDULE, "delete-schedule", "Deletes a schedule; its snapshots stay.", vms::delete_schedule)
        .least(ADMIN)
        .answers(NOTHING)
        .tagged(),
    // Jobs
    Route::get(paths::JOBS, "list-jobs", "Jobs, the newest first.", overview::list_jobs)
        .least(VIEWER)
        .reach(Reach::Inside)
        .queries(&[LIMIT, CURSOR, STATE])
        .answers(&[json(200, Shape::of::<JobList>())]),
    Route::get(paths::JOB, "show-job", "One job.", overview::show_job)
        .least(VIEWER)
        .reach(Reach::Inside)
        .queries(&[number("wait", 0, MAX_WAIT_SECONDS, "Answer when it has ended, or after so many seconds.")])
        .answers(&[json(200, Shape::of::<Job>())])
        .tagged(),
    Route::post(paths::JOB_CANCEL, "cancel-job", "Asks a job to end early.", overview::cancel_job)
        .least(OPERATOR)
        .reach(Reach::Inside)
        .answers(&[json(200, Shape::of::<Job>())]),
    Route::delete(paths::JOB, "forget-job", "Forgets a job that has ended.", overview::forget_job)
        .least(ADMIN)
        .reach(Reach::Inside)
        .answers(NOTHING)
        .tagged(),
    // Access
    Route::get(paths::TOKENS, "list-tokens", "Tokens by name, without secrets.", overview::list_tokens)
        .least(ADMIN)
        .queries(PAGE)
        .answers(&[json(200, Shape::of::<TokenList>())]),
    Route::post(
        paths::TOKENS,
        CREATE_TOKEN,
        "Makes a token; its secret is in this answer and nowhere else.",
        overview::create_token,
    )
    .least(ADMIN)
    .takes(Body::Json(Shape::of::<CreateToken>()))
    .answers(&[json(201, Shape::of::<NewToken>())]),
    Route::delete(paths::TOKEN, "delete-token", "Deletes a token.", overview::delete_token).least(ADMIN).answers(NOTHING),
    Route::get(paths::AUDIT, "list-audit", "The newest lines of the audit log.", overview::audit)
        .least(ADMIN)
        .queries(&[LIMIT])
        .answers(&[json(200, Shape::of::<AuditList>())]),
];

/// The one route whose answer is never kept.
pub(crate) const CREATE_TOKEN: &str = "create-token";

const LABEL: Query = Query {
    name: "label",
    kind: QueryKind::Labels,
    required: false,
    words: "Only those with this label, `key=value`; may stand several times.",
};
const STATE: Query =
    Query { name: "state", kind: QueryKind::Word(&JobState::WORDS), required: false, words: "Only those in this state." };
const OFFSET: Query = required(number("offset", 0, MAX_SIZE_BYTES, "The first byte, a multiple of 512."));

const fn number(name: &'static str, least: u64, most: u64, words: &'static str) -> Query {
    Query { name, kind: QueryKind::Number { least, most }, required: false, words }
}

const fn flag(name: &'static str, words: &'static str) -> Query {
    Query { name, kind: QueryKind::Flag, required: false, words }
}

const fn required(mut query: Query) -> Query {
    query.required = true;
    query
}

const fn json(status: u16, shape: Shape) -> Reply {
    Reply { status, content: Content::Json(shape) }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::ROUTES;
    use crate::role::{Least, Role};
    use crate::route::{Reach, Verb};

    #[test]
    fn the_table_follows_its_own_rules() {
        let mut seen = BTreeSet::new();
        for route in ROUTES {
            let name = route.name;
            assert!(seen.insert((route.method.method().to_string(), route.path)) && !route.replies.is_empty(), "{name}");
            let snapshot = route.path.contains("{snapshot}");
            if route.method == Verb::Delete && !snapshot {
                assert_eq!(route.least, Least::Role(Role::Admin), "{name}: deleting is for admins");
            }
            if !route.method.is_read() {
                assert!(!matches!(route.least, Least::Known | Least::Role(Role::Viewer)), "{name}: viewers change nothing");
            }
            if route.path.contains("/tokens") || route.path.contains("/audit") {
                assert_eq!(route.least, Least::Role(Role::Admin), "{name}");
            }
            assert_eq!(route.reach == Reach::Volume, route.path.starts_with("/api/v1/volumes/{name}"), "{name}");
        }
        let names: BTreeSet<_> = ROUTES.iter().map(|route| route.name).collect();
        assert_eq!(names.len(), ROUTES.len());
        let open: Vec<_> = ROUTES.iter().filter(|route| route.least == Least::Known).map(|route| route.name).collect();
        assert_eq!(open, ["show-version", "show-openapi"]);
    }
}
