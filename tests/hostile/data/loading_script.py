import datasets


class Routing(datasets.GeneratorBasedBuilder):
    pass
