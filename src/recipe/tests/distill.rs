//! `[distill]`: what it reads, and what it does not go with.

use super::*;

const TEACHER: &str = "distill.teacher=/t";

#[test]
fn a_teacher_is_all_that_distillation_needs() {
    assert_eq!(recipe(SHORT, &[]).distill, None);
    let distill = recipe(SHORT, &[TEACHER]).distill.unwrap();
    let expected = DistillSettings {
        teacher: "/t".into(),
        temperature: 2.0,
        logits: 1.0,
        cross_entropy: 1.0,
        relations: 0.0,
        relation_layer: -1,
        teacher_relation_layer: None,
        relation_form: RelationForm::Cosine,
        top_k: None,
    };
    assert_eq!(distill, expected);
    let hub = recipe(SHORT, &["distill.teacher=hf:a/b@c", "distill.top_k=7"]).distill.unwrap();
    assert_eq!((hub.teacher.as_str(), hub.top_k), ("hf:a/b@c", Some(7)));
    assert!(problem(SHORT, &["distill.top_k=7"]).contains("[distill.teacher]: missing"));
}

#[test]
fn what_distillation_does_not_go_with_is_named() {
    let relations = "distill.relations=1";
    for (words, expected) in [
        (&["stage=dpo"][..], "[distill]: preferences have a reference model"),
        (&["distill.logits=0", "distill.cross_entropy=0"], "[distill.logits]: nothing to learn"),
        (&[relations, "distill.top_k=4"], "[distill.top_k]: the kept words"),
        (&[relations, "train.recompute=true"], "[distill.relations]: relations read a block"),
        (&["distill.temperature=0"], "[distill.temperature]: out of range"),
        (&["distill.logits=-1"], "[distill.logits]: out of range"),
        (&["distill.relation_layer=100000"], "[distill.relation_layer]: out of range"),
        (&["distill.relation_form=dot"], "[distill.relation_form]: unknown choice"),
        (&["distill.teacher=hf:a"], "[distill.teacher]: not a model"),
    ] {
        let found = problem(SHORT, &[&[TEACHER], words].concat());
        assert!(found.contains(expected), "{found}");
    }
    let during = ["train.memory=lean", "distill.relations=1"];
    let found = problem(SHORT, &[&[TEACHER], &during[..]].concat());
    assert!(found.contains("[distill.relations]"), "{found}");
}
