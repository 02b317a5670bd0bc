use proptest::prelude::*;

use super::*;
use crate::wire::device_name::DeviceName;

/// Returns the partitions of the roots that the script in `/boot/grub/grub.cfg` may boot, given the other files; 0 for one
/// that is not known, `None` if there is no menu.
fn roots(script: &str, files: &[(&str, &str)]) -> Option<Vec<u32>> {
    let read = |path: &str| match path.strip_prefix("/boot/grub/") {
        Some("grub.cfg") => Some(script.to_owned()),
        _ => files.iter().find(|(name, _)| *name == path).map(|(_, text)| (*text).to_owned()),
    };
    let found = read_grub(&GrubFiles { folder: "/boot/grub", read: &read, loader_entries: &[] })?;
    let mut roots: Vec<u32> = found.menu.possible_lines().into_iter().map(|line| number(&line.root)).collect();
    roots.sort_unstable();
    roots.dedup();
    Some(roots)
}

fn number(root: &LineRoot) -> u32 {
    match root {
        LineRoot::Named(DeviceName::Partition(number)) => *number,
        _ => 0,
    }
}

/// A menu of two entries with different roots.
const ENTRIES: &str = "menuentry 'A' --class x $menuentry_id_option 'id-a' {\n\tlinux /v root=/dev/vda2 ro\n}\n\
    menuentry \"B\" --id id-b {\n\tlinux /v root=/dev/vda3\n}\n";

/// Returns the head that grub-mkconfig(8) generates, with this default.
fn debian(default: &str) -> String {
    format!(
        "if [ -s $prefix/grubenv ]; then\n  set have_grubenv=true\n  load_env\nfi\n\
        if [ \"${{next_entry}}\" ] ; then\n   set default=\"${{next_entry}}\"\n   set next_entry=\n   save_env next_entry\n\
           set boot_once=true\nelse\n   set default=\"{default}\"\nfi\n\n\
        if [ x\"${{feature_menuentry_id}}\" = xy ]; then\n  menuentry_id_option=\"--id\"\nelse\n  menuentry_id_option=\"\"\nfi\n\n\
        export menuentry_id_option\n\nif [ \"${{prev_saved_entry}}\" ]; then\n  set saved_entry=\"${{prev_saved_entry}}\"\n\
          save_env saved_entry\n  set prev_saved_entry=\n  save_env prev_saved_entry\n  set boot_once=true\nfi\n\n\
        function savedefault {{\n  if [ -z \"${{boot_once}}\" ]; then\n    saved_entry=\"${{chosen}}\"\n    save_env saved_entry\n  fi\n}}\n\
        function load_video {{\n  if [ x$feature_all_video_module = xy ]; then\n    insmod all_video\n  else\n    insmod efi_gop\n  fi\n}}\n\n\
        if [ x$feature_default_font_path = xy ] ; then\n   font=unicode\nelse\ninsmod part_gpt\ninsmod ext2\nset root='hd0,gpt1'\n\
        if [ x$feature_platform_search_hint = xy ]; then\n  search --no-floppy --fs-uuid --set=root --hint-bios=hd0,gpt1  8d1f\n\
        else\n  search --no-floppy --fs-uuid --set=root 8d1f\nfi\n    font=\"/usr/share/grub/unicode.pf2\"\nfi\n\n\
        if loadfont $font ; then\n  set gfxmode=auto\n  load_video\n  insmod gfxterm\nfi\nterminal_output gfxterm\n\
        if [ \"${{recordfail}}\" = 1 ] ; then\n  set timeout=30\nelse\n  if [ x$feature_timeout_style = xy ] ; then\n    set timeout_style=menu\n\
            set timeout=5\n  else\n    set timeout=5\n  fi\nfi\n"
    )
}

/// The foot that grub-mkconfig(8) generates.
const FOOT: &str = "if [ \"$grub_platform\" = \"efi\" ]; then\n\tfwsetup --is-supported\n\tif [ \"$?\" = 0 ]; then\n\
    \t\tmenuentry 'UEFI Firmware Settings' $menuentry_id_option 'uefi-firmware' {\n\t\t\tfwsetup\n\t\t}\n\tfi\nfi\n\
    if [ -f  ${config_directory}/custom.cfg ]; then\n  source ${config_directory}/custom.cfg\n\
    elif [ -z \"${config_directory}\" -a -f  $prefix/custom.cfg ]; then\n  source $prefix/custom.cfg\nfi\n";

#[test]
fn a_generated_menu_boots_its_default() {
    for (default, environment, expected) in [
        ("0", "", 2),
        ("1", "", 3),
        ("id-b", "", 3),
        ("${saved_entry}", "", 2),
        ("${saved_entry}", "saved_entry=id-b\n", 3),
        ("${saved_entry}", "saved_entry=B", 3),
        ("0", "saved_entry=1", 2),
        ("0", "next_entry=1\n", 3),
    ] {
        let script = format!("{}{ENTRIES}{FOOT}", debian(default));
        let environment = format!("# GRUB Environment Block\n{environment}");
        let files = [("/boot/grub/grubenv", environment.as_str())];
        assert_eq!(roots(&script, &files), Some(vec![expected]), "{default} {environment}");
    }
    let script = format!("{}{ENTRIES}{FOOT}", debian("0"));
    assert_eq!(roots(&script, &[]), Some(vec![2]), "without an environment block");
    assert_eq!(roots(&script, &[("/boot/grub/custom.cfg", "set default=1\n")]), Some(vec![3]));
    assert_eq!(roots(&script, &[("/boot/grub/custom.cfg", "if x; then\nset default=1\nfi\n")]), Some(vec![2, 3]));
}

#[test]
fn a_menu_that_stops_failed_boots_keeps_its_default() {
    let head = "load_env\nif [ \"${initrdfail}\" = 2 ]; then\n   set initrdfail=\nelif [ \"${initrdfail}\" = 1 ]; then\n\
           set next_entry=\"${prev_entry}\"\n   set prev_entry=\n   if [ \"${next_entry}\" ]; then\n      set initrdfail=2\n   fi\nfi\n\
        if [ \"${env_block}\" ] ; then\n  set env_block=\"(${root})${env_block}\"\n  load_env -f \"${env_block}\"\nfi\n\
        if [ \"${next_entry}\" ] ; then\n   set default=\"${next_entry}\"\nelse\n   set default=\"0\"\nfi\n\
        if [ -n \"${boot_counter}\" -a \"${boot_success}\" = \"0\" ]; then\n  if [ \"${boot_counter}\" = \"0\" -o \"${boot_counter}\" = \"-1\" ]; then\n\
            set default=1\n  else\n    decrement boot_counter\n  fi\nfi\n";
    let script = format!("{head}{ENTRIES}");
    assert_eq!(roots(&script, &[]), Some(vec![2]));
    for environment in ["initrdfail=1\nprev_entry=1\n", "boot_counter=0\nboot_success=0\n"] {
        assert_eq!(roots(&script, &[("/boot/grub/grubenv", environment)]), Some(vec![3]), "{environment}");
    }
    assert_eq!(roots(&script, &[("/boot/grub/grubenv", "env_block=1+1\n")]), Some(vec![2, 3]));
}

#[test]
fn a_default_that_control_flow_decides_is_not_known() {
    let slots = "default=0\nset ORDER=\"A B\"\nset A_OK=1\nset B_OK=1\nset A_TRY=0\nset B_TRY=0\nload_env --file=/grubenv\n\
        for SLOT in $ORDER; do\n    if [ \"$SLOT\" == \"A\" ]; then\n        INDEX=0\n        OK=$A_OK\n        TRY=$A_TRY\n        A_TRY=1\n    fi\n\
            if [ \"$SLOT\" == \"B\" ]; then\n        INDEX=1\n        OK=$B_OK\n        TRY=$B_TRY\n        B_TRY=1\n    fi\n\
            if [ \"$OK\" -eq 1 -a \"$TRY\" -eq 0 ]; then\n        default=$INDEX\n        break\n    fi\ndone\n\
        save_env A_TRY A_OK B_TRY B_OK ORDER\n";
    for script in [
        format!("{slots}{ENTRIES}"),
        format!("set default=$slot\n{ENTRIES}"),
        format!("if search --file /b; then set default=1; fi\n{ENTRIES}"),
        format!("while sleep 1; do default=1; done\n{ENTRIES}"),
        format!("function choose {{ set default=\"$1\"; }}\nchoose 1\n{ENTRIES}"),
        format!("search --set=default --file /b\n{ENTRIES}"),
        format!("source (hd1,gpt1)/more.cfg\n{ENTRIES}"),
        format!("set root='hd0,gpt3'\nsource /more.cfg\n{ENTRIES}"),
        format!("eval \"set default=1\"\n{ENTRIES}"),
        format!("if [ \"$x\" = 1 ]; then\nconfigfile /b.cfg\nfi\n{ENTRIES}"),
        format!("{ENTRIES}fi\n"),
        "menuentry 'C' {\nlinux /v root=$device\n}\n".to_owned(),
        "if [ \"$x\" = 1 ]; then\nmenuentry 'A' {\nlinux /v root=/dev/vda2\n}\nelse\n\
            menuentry 'B' {\nlinux /v root=/dev/vda3\n}\nfi\n"
            .to_owned(),
        "menuentry 'A' {\nif [ \"$slot\" = b ]; then\nset d=3\nelse\nset d=2\nfi\nlinux /v root=/dev/vda$d\n}\n"
            .to_owned(),
        "menuentry 'A' {\nchainloader /EFI/slot/grubx64.efi\n}\n".to_owned(),
    ] {
        let found = roots(&script, &[("/b.cfg", "")]).unwrap();
        assert!(found.len() > 1 || found == [0], "{found:?} {script}");
    }
}

#[test]
fn what_a_script_decides_by_itself_is_followed() {
    for (script, expected) in [
        (
            "set slot=B\nif [ \"$slot\" = B ]; then set d=3; else set d=2; fi\nmenuentry 'a' {\n linux /v root=/dev/vda$d\n}\n",
            3,
        ),
        ("menuentry 'a' {\n linux /v root=/dev/vda2 ro root=/dev/vda3\n}\n", 3),
        ("#menuentry 'x' {\n# linux /v root=/dev/vda2\n#}\nmenuentry 'y' {\n linux /v root=/dev/vda3\n}\n", 3),
        ("linux /vmlinuz root=/dev/vda1\nboot\n", 1),
        ("configfile $prefix/more.cfg\n", 4),
        ("configfile /boot/grub/more.cfg\n", 4),
        (
            "function f { set default=1; }\nf\nmenuentry a { linux /v root=/dev/vda2; }\nmenuentry b { linux /v root=/dev/vda3; }\n",
            3,
        ),
        (
            "submenu 's' {\nmenuentry 'a' {\nlinux /v root=/dev/vda2\n}\nmenuentry 'b' {\nlinux /v root=/dev/vda3\n}\n}\nset default='s>b'\n",
            3,
        ),
        ("menuentry 'x' {\nmultiboot2 /xen.gz\nmodule2 /v placeholder root=/dev/vda3\n}\n", 3),
    ] {
        let more = ("/boot/grub/more.cfg", "menuentry 'm' {\n linux /v root=/dev/vda4\n}\n");
        assert_eq!(roots(script, &[more]), Some(vec![expected]), "{script}");
    }
    assert_eq!(roots("search.fs_uuid ab root\nset prefix=($root)/boot/grub\nconfigfile $prefix/grub.cfg\n", &[]), None);
    assert_eq!(roots("", &[]), None);
}

#[test]
fn a_script_without_end_is_given_up() {
    let recursion = format!("function f {{ f; f; }}\nf\n{ENTRIES}");
    assert!(roots(&recursion, &[]).unwrap().contains(&0));
    let many: String = (0..20_000).map(|number| format!("a{number}=b\n")).collect();
    let menus = "menuentry x {\n}\n".repeat(5_000);
    assert!(roots(&format!("{many}{menus}{ENTRIES}"), &[]).unwrap().contains(&0));
    let itself = format!("source $prefix/loop.cfg\n{ENTRIES}");
    let files = [("/boot/grub/loop.cfg", "source $prefix/loop.cfg\nsource $prefix/loop.cfg\n")];
    assert!(roots(&itself, &files).unwrap().contains(&0));
}

#[test]
fn loader_entries_are_in_the_menu_where_it_asks_for_them() {
    let mut entries = [LoaderEntry::default(), LoaderEntry::default()];
    entries[0].options = Some("$kernelopts quiet $tuned_params".to_owned());
    entries[1].options = Some("root=/dev/vda3".to_owned());
    let script = "load_env\nif [ -z \"${kernelopts}\" ]; then\n  set kernelopts=\"root=/dev/vda2 ro \"\nfi\nblscfg\n";
    let read = |path: &str| path.ends_with("grub.cfg").then(|| script.to_owned());
    let found = read_grub(&GrubFiles { folder: "/grub2", read: &read, loader_entries: &entries }).unwrap();
    let roots: Vec<u32> = found.menu.possible_lines().into_iter().map(|line| number(&line.root)).collect();
    assert!(found.has_loader_entries);
    assert_eq!(roots, [2]);
}

proptest! {
    #[test]
    fn no_script_makes_the_reader_panic(
        text in "((if|then|elif|else|fi|for a in b|do|done|function f|menuentry x|linux root=/dev/vda2|set default=\"?\\$?[{]?a|a=1|\\[ ]?|-o|-a|!|source|configfile|[{}'\";$#\\\\]|[ \n])( |\n|;)?){0,60}",
    ) {
        let _ = roots(&text, &[]);
    }
}
