//! Images in and out: real ones, made and compared by `qemu-img`, through an appliance in memory.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use lamina_api::appliance::{VolumeData, Volumes};
use lamina_api::volume::VolumeFilter;
use lamina_contract::VolumeName;

use crate::daemon::{Daemon, daemon, lamina};

const DISK: u64 = 64 << 20;
/// Where a test disk has data: at its start, across a request's border, alone in the middle, at its end.
const DATA: [(u64, usize); 4] = [(0, 4096), ((1 << 20) - 6000, 12_000), (33 << 20, 65_536), (DISK - 512, 512)];

fn qemu_img(arguments: &[&str]) {
    let output = Command::new("qemu-img").args(arguments).output().expect("qemu-img: see tests/install-packages.sh");
    assert!(output.status.success(), "qemu-img {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A sparse raw image with bytes that do not repeat.
fn raw(dir: &Path) -> PathBuf {
    let path = dir.join("disk.raw");
    let mut file = File::create(&path).expect("create");
    file.set_len(DISK).expect("sparse");
    for (offset, length) in DATA {
        let bytes: Vec<u8> = (0..length).map(|at| ((at * 7 + at / 251) % 255 + 1) as u8).collect();
        file.seek(SeekFrom::Start(offset)).expect("seek");
        file.write_all(&bytes).expect("written");
    }
    // Zeros that are written are data to the file system, and none to us.
    file.seek(SeekFrom::Start(20 << 20)).expect("seek");
    file.write_all(&[0; 1 << 20]).expect("written");
    path
}

fn path(path: &Path) -> &str {
    path.to_str().expect("text")
}

fn allocated(daemon: &Daemon, name: &str) -> u64 {
    let name = VolumeName::new(name).expect("a name");
    daemon.fake.extents(&name, 0, 10_000).expect("extents").extents.iter().map(|extent| extent.length).sum()
}

fn volumes(daemon: &Daemon) -> Vec<String> {
    let all = daemon.fake.volumes(&VolumeFilter::default(), &lamina_api::page::Page::all()).expect("volumes");
    all.volumes.into_iter().map(|volume| volume.name).collect()
}

#[test]
fn a_raw_image_comes_in_without_its_zeros_and_goes_out_the_same() {
    let daemon = daemon();
    let image = raw(daemon.dir.path());
    let done = daemon.json(&["volume", "import", path(&image), "web", "--verify", "--label", "tier=gold"]);
    assert_eq!(
        (done["format"].as_str(), done["disk_bytes"].as_u64(), done["verified"].as_bool()),
        (Some("raw"), Some(DISK), Some(true))
    );
    assert_eq!((done["volume"]["state"].as_str(), done["volume"]["labels"]["tier"].as_str()), (Some("attached"), Some("gold")));
    // One block; four across the border; sixteen; the last one.
    assert_eq!((allocated(&daemon, "web"), done["written_bytes"].as_u64()), (22 * 4096, Some(22 * 4096)));

    let back = daemon.dir.path().join("back.raw");
    let done = daemon.json(&["volume", "export", "web", path(&back)]);
    assert_eq!((done["format"].as_str(), done["disk_bytes"].as_u64()), (Some("raw"), Some(DISK)));
    assert!(fs::read(&image).expect("read") == fs::read(&back).expect("read"), "the bytes differ");
    assert!(fs::metadata(&back).expect("metadata").blocks() * 512 < 1 << 20, "not sparse");
    assert_eq!(volumes(&daemon), ["web"], "the temporary clone stayed");
    assert_eq!(daemon.ok(&["snapshot", "list", "web", "-q"]), "", "the temporary snapshot stayed");

    let mut export = daemon.command(&["export", "web", "-", "--format", "raw", "--quiet"]);
    let stream = export.stdout(Stdio::piped()).output().expect("runs");
    assert!(stream.status.success() && stream.stdout == fs::read(&image).expect("read"), "stdout differs");
}

#[test]
fn a_compressed_qcow2_comes_in_and_goes_out_as_qcow2() {
    let daemon = daemon();
    let image = raw(daemon.dir.path());
    let qcow2 = daemon.dir.path().join("a,b.qcow2");
    qemu_img(&["convert", "-q", "-c", "-f", "raw", "-O", "qcow2", path(&image), path(&qcow2)]);
    let text = daemon.ok(&["import", path(&qcow2), "web", "--verify"]);
    assert!(text.contains("qcow2") && text.contains("verified  yes"), "{text}");
    daemon.ok(&["snapshot", "create", "web@now"]);
    for (arguments, name) in [(&["web@now"][..], "plain.qcow2"), (&["web", "--compress"], "small,er.qcow2")] {
        let file = daemon.dir.path().join(name);
        daemon.ok(&[&["volume", "export"], arguments, &[path(&file)]].concat());
        qemu_img(&["check", "-q", "-f", "qcow2", path(&file)]);
        // With escaped commas, since qemu-img takes them for options.
        let options = format!("driver=qcow2,file.driver=file,file.filename={}", path(&file).replace(',', ",,"));
        let compare =
            ["compare", "-q", "--image-opts", &options, &format!("driver=raw,file.driver=file,file.filename={}", path(&image))];
        qemu_img(&compare);
        assert!(fs::metadata(&file).expect("metadata").len() < 2 << 20);
    }
    assert_eq!(volumes(&daemon), ["web"]);
}

#[test]
fn other_formats_come_in_through_qemu() {
    let daemon = daemon();
    let image = raw(daemon.dir.path());
    for format in ["vmdk", "vdi", "vhdx"] {
        let other = daemon.dir.path().join(format!("disk.{format}"));
        qemu_img(&["convert", "-q", "-f", "raw", "-O", format, path(&image), path(&other)]);
        let done = daemon.json(&["import", path(&other), format, "--verify", "--quiet"]);
        assert_eq!(done["format"], format);
        assert_eq!(allocated(&daemon, format), 22 * 4096, "{format}");
    }
}

#[test]
fn an_image_that_names_other_files_is_refused_unless_that_is_wanted() {
    let daemon = daemon();
    let dir = daemon.dir.path();
    let image = raw(dir);
    let overlay = dir.join("overlay.qcow2");
    qemu_img(&["create", "-q", "-f", "qcow2", "-b", path(&image), "-F", "raw", path(&overlay)]);
    let stderr = daemon.fails(2, &["import", path(&overlay), "web"]);
    assert!(stderr.contains("has the backing file") && stderr.contains("--with-backing"), "{stderr}");
    let outside = dir.join("outside.qcow2");
    let option = format!("data_file={},data_file_raw=on", path(&dir.join("data.raw")));
    qemu_img(&["create", "-q", "-f", "qcow2", "-o", &option, path(&outside), "1M"]);
    assert!(daemon.fails(2, &["import", path(&outside), "web"]).contains("has its data in"));
    // A guest that writes a header into its raw disk does not choose the format, nor the backing file.
    let disguised = dir.join("disguised.raw");
    fs::copy(&overlay, &disguised).expect("copied");
    assert!(daemon.fails(2, &["import", path(&disguised), "web"]).contains("has the backing file"));
    daemon.ok(&["import", path(&disguised), "literally", "--format", "raw"]);
    assert!(!volumes(&daemon).contains(&"web".to_owned()), "a refused image left a volume");
    daemon.ok(&["import", path(&overlay), "web", "--with-backing", "--verify"]);
    assert_eq!(allocated(&daemon, "web"), 22 * 4096);
}

#[test]
fn what_holds_for_an_image_holds_for_each_one_behind_it() {
    let daemon = daemon();
    let dir = daemon.dir.path();
    let secret = dir.join("secret");
    fs::write(&secret, vec![0x5e; 1 << 20]).expect("written");
    let named = |name: &str| dir.join(name).to_str().expect("text").to_owned();
    let on = |name: &str, base: &str, format: &str| {
        let file = named(name);
        qemu_img(&["create", "-q", "-f", "qcow2", "-b", base, "-F", format, &file, "1M"]);
        file
    };
    // Data in another file, behind two images that have none.
    let (base, option) = (named("base.qcow2"), format!("data_file={},data_file_raw=on", path(&dir.join("data.raw"))));
    qemu_img(&["create", "-q", "-f", "qcow2", "-o", &option, &base, "1M"]);
    let top = on("top.qcow2", &on("middle.qcow2", &base, "qcow2"), "qcow2");
    for arguments in [&["import", &top, "web", "--with-backing"][..], &["import", &top, "web"]] {
        let stderr = daemon.fails(2, arguments);
        assert!(stderr.contains("base.qcow2 has its data in ") && stderr.contains("data.raw"), "{stderr}");
    }
    // A raw file behind two images: all that would be read is said, before and when it is.
    let above = on("above.qcow2", &on("over.qcow2", path(&secret), "raw"), "qcow2");
    let stderr = daemon.fails(2, &["import", &above, "web"]);
    assert!(stderr.contains("over.qcow2, which has ") && stderr.contains("/secret\n"), "{stderr}");
    let output = daemon.lamina(&["import", &above, "told", "--with-backing"]);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && stderr.starts_with("reading ") && stderr.contains("over.qcow2, behind it "), "{stderr}");
    assert!(stderr.contains("/secret\n"), "{stderr}");
    assert_eq!(allocated(&daemon, "told"), 1 << 20);
    // What would have to be guessed, what is no file, what has no end, and formats that are not read.
    let unstated = on("unstated.qcow2", path(&secret), "raw");
    let mut bytes = fs::read(&unstated).expect("read");
    let at = bytes.windows(4).position(|word| word == [0xe2, 0x79, 0x2a, 0xca]).expect("the extension that states it");
    bytes[at..at + 4].copy_from_slice(b"none");
    fs::write(&unstated, &bytes).expect("written");
    let away = on("away.qcow2", path(&secret), "raw");
    let rebase = |file: &str, to: &str, format: &str| qemu_img(&["rebase", "-u", "-f", "qcow2", "-b", to, "-F", format, file]);
    rebase(&away, "nbd://127.0.0.1:1/x", "raw");
    let device = on("device.qcow2", path(&secret), "raw");
    rebase(&device, "/dev/null", "raw");
    let (one, qed) = (on("one.qcow2", path(&secret), "raw"), on("qed.qcow2", path(&secret), "raw"));
    rebase(&one, &on("two.qcow2", &one, "qcow2"), "qcow2");
    rebase(&qed, path(&secret), "qed");
    for (file, words) in [
        (&unstated, "does not say which format"),
        (&away, "no regular file of this machine"),
        (&device, "no regular file of this machine"),
        (&one, "and so on without an end"),
        (&qed, "in a format that is not read"),
    ] {
        let above = on("above.qcow2", &unstated, "qcow2");
        rebase(&above, file, "qcow2");
        for image in [file, &above] {
            let stderr = daemon.fails(2, &["import", image, "web", "--with-backing"]);
            assert!(stderr.contains(words) && stderr.contains("advice: "), "{stderr}");
        }
    }
    assert_eq!(volumes(&daemon), ["told"], "a refused image left a volume");
}

#[test]
fn what_a_volume_holds_is_replaced_when_that_is_confirmed() {
    let daemon = daemon();
    let image = raw(daemon.dir.path());
    daemon.ok(&["volume", "create", "web", "--size", "128MiB"]);
    daemon.ok(&["volume", "create", "small", "--size", "1MiB"]);
    let web = VolumeName::new("web").expect("a name");
    for offset in [0, 2 << 20, 127 << 20] {
        daemon.fake.write_data(&web, offset, &[9; 8192]).expect("written");
    }
    let stderr = daemon.fails(2, &["import", path(&image), "web"]);
    assert!(stderr.contains("replaces what volume 'web' holds") && stderr.contains("advice: add --yes"), "{stderr}");
    daemon.ok(&["import", path(&image), "web", "--yes", "--verify"]);
    assert_eq!(daemon.fake.read_data(&web, 2 << 20, 8192).expect("read"), [0; 8192]);
    assert_eq!(daemon.fake.read_data(&web, 127 << 20, 8192).expect("read"), [0; 8192]);
    let stderr = daemon.fails(5, &["import", path(&image), "small"]);
    assert!(stderr.contains("has 1 MiB") && stderr.contains("advice: lamina volume resize small 64MiB"), "{stderr}");
    let back = daemon.dir.path().join("back.raw");
    File::create(&back).expect("create");
    assert!(daemon.fails(5, &["export", "web", path(&back)]).contains("add --force"));
    daemon.ok(&["export", "web", path(&back), "--force"]);
    assert!(daemon.fails(1, &["export", "web", "/nowhere/x.raw"]).contains("cannot write /nowhere/x.raw."));
    assert!(daemon.fails(2, &["import", "/dev/null", "x"]).contains("is empty"));
    assert!(daemon.fails(2, &["import", "/nowhere/x.raw", "x"]).contains("cannot read /nowhere/x.raw"));
    assert_eq!(volumes(&daemon), ["small", "web"]);
}

#[test]
fn an_export_has_the_size_of_what_is_exported_whatever_size_the_volume_has_now() {
    let daemon = daemon();
    daemon.ok(&["volume", "create", "web", "--size", "4MiB"]);
    let web = VolumeName::new("web").expect("a name");
    daemon.fake.write_data(&web, 3 << 20, &[7; 4096]).expect("written");
    daemon.ok(&["snapshot", "create", "web@large"]);
    daemon.ok(&["volume", "resize", "web", "2MiB", "--shrink", "--yes"]);
    daemon.ok(&["snapshot", "create", "web@small"]);
    for (snapshot, size, bytes) in [("large", 4 << 20, Some(&[7; 4096][..])), ("small", 2 << 20, None)] {
        let file = daemon.dir.path().join(format!("{snapshot}.raw"));
        let done = daemon.json(&["export", &format!("web@{snapshot}"), path(&file)]);
        assert_eq!(done["disk_bytes"].as_u64(), Some(size), "{snapshot}");
        let read = fs::read(&file).expect("read");
        assert_eq!(read.len() as u64, size, "{snapshot}");
        assert_eq!(read.get(3 << 20..(3 << 20) + 4096), bytes, "{snapshot}");
    }
    daemon.ok(&["volume", "resize", "web", "8MiB"]);
    let mut export = daemon.command(&["export", "web@small", "-", "--format", "raw"]);
    assert_eq!(export.output().expect("runs").stdout.len(), 2 << 20);
}

#[test]
fn exporting_a_moment_leaves_no_snapshot_but_those_that_were_there() {
    let daemon = daemon();
    daemon.ok(&["volume", "create", "web", "--size", "1MiB", "--cdp", "1h"]);
    daemon.ok(&["snapshot", "create", "web@mine"]);
    let file = daemon.dir.path().join("x.raw");
    daemon.ok(&["export", "web", path(&file), "--at", "2026-01-01T00:00:00Z"]);
    assert_eq!(daemon.ok(&["snapshot", "list", "web", "-q"]), "web@mine\n");
    daemon.ok(&["export", "web@mine", path(&file), "--force"]);
    assert_eq!(daemon.ok(&["snapshot", "list", "web", "-q"]), "web@mine\n");
}

#[test]
fn only_regular_files_are_replaced_and_parts_of_others_are_not_touched() {
    let daemon = daemon();
    daemon.ok(&["volume", "create", "web", "--size", "1MiB"]);
    let dir = daemon.dir.path();
    let (link, pipe, secret) = (dir.join("link.raw"), dir.join("pipe.raw"), dir.join("secret"));
    fs::write(&secret, "mine").expect("written");
    symlink(&secret, &link).expect("a link");
    symlink(&secret, dir.join("x.raw.part")).expect("a link");
    assert!(Command::new("mkfifo").arg(&pipe).status().expect("mkfifo").success());
    for (target, kind) in [(path(&link), "a symbolic link"), (path(&pipe), "a pipe"), ("/dev/null", "a character device")] {
        let stderr = daemon.fails(2, &["export", "web", target, "--format", "raw", "--force"]);
        assert!(stderr.contains(&format!("{target} is {kind}, not a regular file")) && stderr.contains("advice:"), "{stderr}");
    }
    daemon.ok(&["export", "web", path(&dir.join("x.raw"))]);
    assert_eq!(fs::read(&secret).expect("read"), b"mine");
    assert!(fs::symlink_metadata(dir.join("x.raw.part")).expect("still there").is_symlink());
}

#[test]
fn an_image_that_nobody_takes_whole_is_a_failure() {
    let daemon = daemon();
    daemon.ok(&["volume", "create", "web", "--size", "8MiB"]);
    let mut export = daemon.command(&["export", "web", "-", "--format", "raw"]);
    let mut child = export.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("runs");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("ended");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("stdout cannot be written: Broken pipe"), "{stderr}");
    assert_eq!(volumes(&daemon), ["web"]);
}

#[test]
fn an_export_whose_reader_stalls_ends_when_it_is_told_to() {
    let daemon = daemon();
    daemon.ok(&["volume", "create", "web", "--size", "8MiB"]);
    let mut export = daemon.command(&["export", "web", "-", "--format", "raw"]);
    let mut child = export.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("runs");
    // Its first bytes say that it writes; the pipe takes 64 KiB of the rest.
    let mut stdout = child.stdout.take().expect("a pipe");
    stdout.read_exact(&mut [0; 16]).expect("read");
    std::thread::sleep(Duration::from_millis(300));
    assert!(Command::new("kill").args(["-TERM", &child.id().to_string()]).status().expect("kill").success());
    let until = Instant::now() + Duration::from_secs(30);
    let status = loop {
        match child.try_wait().expect("a state") {
            Some(status) => break status,
            None if Instant::now() < until => std::thread::sleep(Duration::from_millis(10)),
            None => {
                child.kill().expect("killed");
                panic!("it goes on");
            }
        }
    };
    assert_eq!(status.code(), Some(130));
    drop(stdout);
    assert_eq!(volumes(&daemon), ["web"]);
}

#[test]
fn packed_images_are_not_taken_for_raw_ones() {
    let daemon = daemon();
    let packed = daemon.dir.path().join("disk.raw.gz");
    fs::write(&packed, [&[0x1f, 0x8b, 8][..], &[1; 4093]].concat()).expect("written");
    let stderr = daemon.fails(2, &["import", path(&packed), "web"]);
    assert!(stderr.contains("is compressed with gzip") && stderr.contains("advice: unpack it first: gzip -d"), "{stderr}");
    daemon.ok(&["import", path(&packed), "web", "--format", "raw"]);
    let vhd = daemon.dir.path().join("disk.vhd");
    qemu_img(&["create", "-q", "-f", "vpc", "-o", "subformat=fixed", path(&vhd), "1M"]);
    assert!(daemon.fails(2, &["import", path(&vhd), "vhd"]).contains("is a VHD image"));
}

#[test]
fn going_on_replaces_a_volume_without_a_question_only_when_the_image_was_being_imported_into_it() {
    let daemon = daemon();
    let image = raw(daemon.dir.path());
    daemon.ok(&["volume", "create", "db", "--size", "64MiB"]);
    let db = VolumeName::new("db").expect("a name");
    daemon.fake.write_data(&db, 5 << 20, &[9; 4096]).expect("written");
    let stderr = daemon.fails(2, &["import", path(&image), "db", "--resume"]);
    assert!(stderr.contains("importing replaces what volume 'db' holds"), "{stderr}");
    assert_eq!(daemon.fake.read_data(&db, 5 << 20, 4096).expect("read"), [9; 4096]);
    assert_eq!(daemon.json(&["volume", "show", "db"])["state"], "attached");
}

#[test]
fn an_image_that_is_changed_while_it_is_imported_is_a_failure() {
    let daemon = daemon();
    let image = daemon.dir.path().join("large.raw");
    let file = large(&image);
    let (child, _) = interrupted_at_forty(&daemon, &["import", path(&image), "web", "--detached", "--verify"]);
    file.set_len(399 << 20).expect("cut off");
    let output = child.wait_with_output().expect("ended");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("was changed while it was read") && stderr.contains("--resume --verify --detached"), "{stderr}");
    // What was begun goes on without a question, by comparing; and stays as it was wanted.
    let output = daemon.lamina(&["import", path(&image), "web", "--resume", "--verify", "-o", "json"]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && stderr.contains("comparing"), "{stderr}");
    let done: serde_json::Value = serde_json::from_slice(&output.stdout).expect("json");
    assert_eq!((done["volume"]["state"].as_str(), done["disk_bytes"].as_u64()), (Some("detached"), Some(399 << 20)));
}

#[test]
fn a_copy_that_differs_is_found_and_mended() {
    let daemon = daemon();
    let image = raw(daemon.dir.path());
    daemon.ok(&["import", path(&image), "web"]);
    let web = VolumeName::new("web").expect("a name");
    daemon.fake.write_data(&web, 33 << 20, &[200]).expect("written");
    daemon.fake.write_data(&web, 50 << 20, &[200]).expect("written");
    // Nothing is known of an import that ended well: so it is compared.
    daemon.fails(2, &["import", path(&image), "web", "--resume", "--verify"]);
    let output = daemon.lamina(&["import", path(&image), "web", "--resume", "--yes", "--verify", "-o", "json"]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && stderr.contains("comparing"), "{stderr}");
    let done: serde_json::Value = serde_json::from_slice(&output.stdout).expect("json");
    assert_eq!(done["written_bytes"].as_u64(), Some(65_536 + 4096), "only what differs is written");
}

/// Four hundred pieces: an appliance in memory takes some seconds for them.
fn large(image: &Path) -> File {
    let mut file = File::create(image).expect("create");
    for at in 0..400u64 {
        file.seek(SeekFrom::Start(at << 20)).expect("seek");
        file.write_all(&[(at % 255) as u8 + 1; 16_384]).expect("written");
    }
    file.set_len(400 << 20).expect("sparse");
    file
}

fn written(daemon: &Daemon) -> usize {
    let web = VolumeName::new("web").expect("a name");
    daemon.fake.extents(&web, 0, 100_000).map(|list| list.extents.len()).unwrap_or(0)
}

/// An import into `web` that is somewhere in the middle, and how many pieces it had written.
fn interrupted_at_forty(daemon: &Daemon, arguments: &[&str]) -> (Child, usize) {
    let mut child = daemon.command(arguments).stderr(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("runs");
    let until = Instant::now() + Duration::from_secs(60);
    while written(daemon) < 40 {
        assert!(Instant::now() < until && child.try_wait().expect("a state").is_none(), "it ended before it could be interrupted");
        std::thread::sleep(Duration::from_millis(5));
    }
    let now = written(daemon);
    (child, now)
}

#[test]
fn an_import_that_was_interrupted_goes_on_where_it_stopped() {
    let daemon = daemon();
    let path_of = daemon.dir.path().join("large.raw");
    drop(large(&path_of));
    let (child, _) = interrupted_at_forty(&daemon, &["import", path(&path_of), "web"]);
    Command::new("kill").args(["-INT", &child.id().to_string()]).status().expect("kill");
    let output = child.wait_with_output().expect("ended");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{stderr}");
    let again = format!(" web --resume --state-dir {}", daemon.dir.path().display());
    assert!(stderr.contains("stopped at") && stderr.contains(&again), "{stderr}");
    let before = written(&daemon);
    assert!(before < 400, "it was not interrupted");
    assert_eq!(daemon.json(&["volume", "show", "web"])["state"], "detached");

    let output = daemon.lamina(&["import", path(&path_of), "web", "--resume", "--verify", "-o", "json"]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && stderr.contains("going on at"), "{stderr}");
    let done: serde_json::Value = serde_json::from_slice(&output.stdout).expect("json");
    let again = done["written_bytes"].as_u64().expect("a number") / 16_384;
    // What was on its way when it stopped may be written twice.
    assert!((400 - before as u64..=400 - before as u64 + 8).contains(&again), "{again} written again, {before} were there");
    assert_eq!((written(&daemon), done["volume"]["state"].as_str()), (400, Some("attached")));
}

/// Leaves an import into `web` half done.
fn half_done(daemon: &Daemon, image: &Path) {
    drop(large(image));
    let (child, _) = interrupted_at_forty(daemon, &["import", path(image), "web"]);
    Command::new("kill").args(["-INT", &child.id().to_string()]).status().expect("kill");
    assert_eq!(child.wait_with_output().expect("ended").status.code(), Some(130));
}

/// A socket before the daemon's, by which everything passes but the answers to requests with `word` in them; and what tells of such one.
fn unanswered(daemon: &Daemon, word: &'static str) -> (PathBuf, Receiver<()>) {
    let (socket, behind) = (daemon.dir.path().join("before.sock"), daemon.dir.path().join("run/lamina.sock"));
    let listener = UnixListener::bind(&socket).expect("bind");
    let (tell, told) = std::sync::mpsc::channel();
    // It ends with the test.
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let (Ok(mut client), Ok(mut upstream), tell) = (client, UnixStream::connect(&behind), tell.clone()) else { return };
            let (mut answers, mut asker) = (upstream.try_clone().expect("cloned"), client.try_clone().expect("cloned"));
            let silent = Arc::new(AtomicBool::new(false));
            let hushed = Arc::clone(&silent);
            std::thread::spawn(move || {
                let mut bytes = [0; 65_536];
                while let Ok(read @ 1..) = answers.read(&mut bytes) {
                    if hushed.load(Ordering::SeqCst) {
                        let _ = tell.send(());
                    } else if asker.write_all(&bytes[..read]).is_err() {
                        return;
                    }
                }
            });
            std::thread::spawn(move || {
                let mut bytes = [0; 65_536];
                while let Ok(read @ 1..) = client.read(&mut bytes) {
                    if String::from_utf8_lossy(&bytes[..read]).contains(word) {
                        silent.store(true, Ordering::SeqCst);
                    }
                    if upstream.write_all(&bytes[..read]).is_err() {
                        return;
                    }
                }
            });
        }
    });
    (socket, told)
}

#[test]
fn an_import_that_is_interrupted_while_it_detaches_attaches_again_when_it_goes_on() {
    let daemon = daemon();
    let image = raw(daemon.dir.path());
    daemon.ok(&["volume", "create", "web", "--size", "64MiB"]);
    let (socket, detached) = unanswered(&daemon, "/detach");
    let mut import = lamina(daemon.dir.path());
    import.args(["--socket", path(&socket), "import", path(&image), "web"]);
    let child = import.stderr(Stdio::piped()).stdout(Stdio::null()).spawn().expect("runs");
    detached.recv_timeout(Duration::from_secs(30)).expect("it detaches the volume");
    Command::new("kill").args(["-INT", &child.id().to_string()]).status().expect("kill");
    let output = child.wait_with_output().expect("ended");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{stderr}");
    assert!(stderr.contains("stopped at 0 B") && stderr.contains("--resume"), "{stderr}");
    assert_eq!(daemon.json(&["volume", "show", "web"])["state"], "detached");
    let done = daemon.json(&["import", path(&image), "web", "--resume", "--quiet"]);
    assert_eq!(done["volume"]["state"], "attached");
}

#[test]
fn an_import_does_not_go_on_where_it_stopped_when_the_volume_was_used_since() {
    let web = VolumeName::new("web").expect("a name");
    for uses in
        [&[&["volume", "attach", "web"][..]][..], &[&["snapshot", "create", "web@x"], &["volume", "rollback", "web@x", "--yes"]]]
    {
        let daemon = daemon();
        let image = daemon.dir.path().join("large.raw");
        half_done(&daemon, &image);
        for arguments in uses {
            daemon.ok(&[arguments, &["-q"][..]].concat());
        }
        daemon.fake.write_data(&web, 4096, &[200; 4096]).expect("a guest's write");
        let again = ["import", path(&image), "web", "--resume"];
        let stderr = daemon.fails(2, &again);
        assert!(stderr.contains("importing replaces what volume 'web' holds"), "{stderr}");
        assert_eq!(daemon.fake.read_data(&web, 4096, 4096).expect("read"), [200; 4096], "it was replaced without a question");
        let output = daemon.lamina(&[&again, &["--yes"][..]].concat());
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && stderr.contains("comparing"), "{stderr}");
        assert_eq!(daemon.fake.read_data(&web, 4096, 4096).expect("read"), [1; 4096], "the guest's write stayed");
    }
}

#[test]
fn an_export_that_was_interrupted_leaves_neither_a_clone_nor_a_file() {
    let daemon = daemon();
    daemon.ok(&["volume", "create", "slow-1", "--size", "1GiB"]);
    let file = daemon.dir.path().join("x.raw");
    let mut child =
        daemon.command(&["export", "slow-1", path(&file)]).stderr(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("runs");
    let until = Instant::now() + Duration::from_secs(30);
    while volumes(&daemon).len() < 2 {
        assert!(Instant::now() < until && child.try_wait().expect("a state").is_none(), "no clone came");
        std::thread::sleep(Duration::from_millis(5));
    }
    Command::new("kill").args(["-TERM", &child.id().to_string()]).status().expect("kill");
    let output = child.wait_with_output().expect("ended");
    assert_eq!(output.status.code(), Some(130), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(volumes(&daemon), ["slow-1"]);
    assert_eq!(daemon.ok(&["snapshot", "list", "slow-1", "-q"]), "");
    assert_eq!(images(daemon.dir.path()), [] as [String; 0]);
}

fn images(dir: &Path) -> Vec<String> {
    let all = fs::read_dir(dir).expect("read").map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned());
    all.filter(|name| name.contains(".raw")).collect()
}

#[test]
fn who_does_not_wait_until_an_export_has_cleaned_up_is_told_what_stays() {
    let daemon = daemon();
    // Deleting those takes a while.
    daemon.ok(&["volume", "create", "late-1", "--size", "1MiB"]);
    let file = daemon.dir.path().join("x.raw");
    let mut export = daemon.command(&["export", "late-1", path(&file)]);
    let child = export.stderr(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("runs");
    let until = Instant::now() + Duration::from_secs(30);
    while !file.exists() {
        assert!(Instant::now() < until, "no image came");
        std::thread::sleep(Duration::from_millis(5));
    }
    Command::new("kill").args(["-INT", &child.id().to_string()]).status().expect("kill");
    let output = child.wait_with_output().expect("ended");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{stderr}");
    for words in ["volume 'late-1-export-", "snapshot 'late-1@export-", "advice: lamina volume delete late-1-export-"] {
        assert!(stderr.contains(words), "{stderr}");
    }
}
