"""Fine-tuning: classifiers on pretrained encoders, trained with transformers' `Trainer`.

In: the folder or Hub id of an encoder, a `LabelledSource` of texts or images, a task, and a
`FinetuningRecipe`. Out: a plain transformers classifier, its logits, metrics and model card.
`sources.open_splits` reads the rows, `models.ClassifierSource` builds the models, `training.train`
trains them.
"""
