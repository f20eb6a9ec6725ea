"""GANomaly's generator as its public code and as anomalib build it, with their layer names: plain torch modules.

Written from the facts of both projects (layer names, shapes, order, activations, score), without this package, so that
imported checkpoints can be compared with them.
"""

import torch
from torch import nn
from torch.nn.functional import pad

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def public_encoder(size, nz, channels, width, extra_layers):
    """``main`` of the public code's encoder: 4×4 convolutions with stride 2 down to 4×4, then one to nz values."""
    main = nn.Sequential()
    main.add_module(f"initial-conv-{channels}-{width}", nn.Conv2d(channels, width, 4, 2, 1, bias=False))
    main.add_module(f"initial-relu-{width}", nn.LeakyReLU(0.2))
    for layer in range(extra_layers):
        main.add_module(f"extra-layers-{layer}-{width}-conv", nn.Conv2d(width, width, 3, 1, 1, bias=False))
        main.add_module(f"extra-layers-{layer}-{width}-batchnorm", nn.BatchNorm2d(width))
        main.add_module(f"extra-layers-{layer}-{width}-relu", nn.LeakyReLU(0.2))
    size //= 2
    while size > 4:
        main.add_module(f"pyramid-{width}-{2 * width}-conv", nn.Conv2d(width, 2 * width, 4, 2, 1, bias=False))
        main.add_module(f"pyramid-{2 * width}-batchnorm", nn.BatchNorm2d(2 * width))
        main.add_module(f"pyramid-{2 * width}-relu", nn.LeakyReLU(0.2))
        size, width = size // 2, 2 * width
    main.add_module(f"final-{width}-1-conv", nn.Conv2d(width, nz, 4, 1, 0, bias=False))
    return main


def public_decoder(size, nz, channels, width, extra_layers):
    """``main`` of the public code's decoder."""
    first = width * size // 8
    main = nn.Sequential()
    main.add_module(f"initial-{nz}-{first}-convt", nn.ConvTranspose2d(nz, first, 4, 1, 0, bias=False))
    main.add_module(f"initial-{first}-batchnorm", nn.BatchNorm2d(first))
    main.add_module(f"initial-{first}-relu", nn.ReLU())
    while first > width:
        half = first // 2
        main.add_module(f"pyramid-{first}-{half}-convt", nn.ConvTranspose2d(first, half, 4, 2, 1, bias=False))
        main.add_module(f"pyramid-{half}-batchnorm", nn.BatchNorm2d(half))
        main.add_module(f"pyramid-{half}-relu", nn.ReLU())
        first = half
    for layer in range(extra_layers):
        main.add_module(f"extra-layers-{layer}-{width}-conv", nn.Conv2d(width, width, 3, 1, 1, bias=False))
        main.add_module(f"extra-layers-{layer}-{width}-batchnorm", nn.BatchNorm2d(width))
        main.add_module(f"extra-layers-{layer}-{width}-relu", nn.ReLU())
    main.add_module(f"final-{width}-{channels}-convt", nn.ConvTranspose2d(width, channels, 4, 2, 1, bias=False))
    main.add_module(f"final-{channels}-tanh", nn.Tanh())
    return main


class Main(nn.Module):
    """A network whose layers are in ``main``."""

    def __init__(self, main):
        super().__init__()
        self.main = main

    def forward(self, x):
        return self.main(x)


class PublicNetG(nn.Module):
    """The public code's generator; ``score`` is what its ``test`` computes per image, in evaluation mode."""

    def __init__(self, isize=64, nz=100, nc=3, ngf=64, extralayers=0):
        super().__init__()
        self.encoder1 = Main(public_encoder(isize, nz, nc, ngf, extralayers))
        self.decoder = Main(public_decoder(isize, nz, nc, ngf, extralayers))
        self.encoder2 = Main(public_encoder(isize, nz, nc, ngf, extralayers))

    def forward(self, x):
        latent_i = self.encoder1(x)
        image = self.decoder(latent_i)
        return image, latent_i, self.encoder2(image)

    def score(self, pixels, mean=(0.5,), std=(0.5,)):
        """Scores (N,) of uint8 images (N, C, S, S), normalised as torchvision's ToTensor and Normalize do."""
        self.eval()
        with torch.no_grad():
            _, latent_i, latent_o = self(normalized(pixels, mean, std))
            return (latent_i - latent_o).pow(2).mean(1).reshape(len(pixels))


class PublicNetD(nn.Module):
    """The public code's discriminator: its encoder's layers by index, the last one apart."""

    def __init__(self, isize=64, nc=3, ngf=64, extralayers=0):
        super().__init__()
        layers = list(public_encoder(isize, 1, nc, ngf, extralayers).children())
        self.features = nn.Sequential(*layers[:-1])
        self.classifier = nn.Sequential(layers[-1])
        self.classifier.add_module("Sigmoid", nn.Sigmoid())

    def forward(self, x):
        features = self.features(x)
        return self.classifier(features).view(-1), features


class AnomalibEncoder(nn.Module):
    """anomalib's encoder: the first convolution pads by 4, so maps are 2 or 3 pixels larger until the last one."""

    def __init__(self, size, nz, channels, width, extra_layers):
        super().__init__()
        self.input_layers = nn.Sequential()
        self.input_layers.add_module(
            f"initial-conv-{channels}-{width}", nn.Conv2d(channels, width, 4, 2, 4, bias=False)
        )
        self.input_layers.add_module(f"initial-relu-{width}", nn.LeakyReLU(0.2))
        self.extra_layers = anomalib_extra_layers(width, extra_layers)
        self.pyramid_features = nn.Sequential()
        size //= 2
        while size > 4:
            pyramid, twice = self.pyramid_features, 2 * width
            pyramid.add_module(f"pyramid-{width}-{twice}-conv", nn.Conv2d(width, twice, 4, 2, 1, bias=False))
            pyramid.add_module(f"pyramid-{twice}-batchnorm", nn.BatchNorm2d(twice))
            pyramid.add_module(f"pyramid-{twice}-relu", nn.LeakyReLU(0.2))
            size, width = size // 2, twice
        self.final_conv_layer = nn.Conv2d(width, nz, 4, 1, 0, bias=False)

    def forward(self, x):
        return self.final_conv_layer(self.pyramid_features(self.extra_layers(self.input_layers(x))))


class AnomalibDecoder(nn.Module):
    """anomalib's decoder; its extra layers are leaky, where the public code's are not."""

    def __init__(self, size, nz, channels, width, extra_layers):
        super().__init__()
        first = width * size // 8
        self.latent_input = nn.Sequential()
        self.latent_input.add_module(f"initial-{nz}-{first}-convt", nn.ConvTranspose2d(nz, first, 4, 1, 0, bias=False))
        self.latent_input.add_module(f"initial-{first}-batchnorm", nn.BatchNorm2d(first))
        self.latent_input.add_module(f"initial-{first}-relu", nn.ReLU())
        self.inverse_pyramid = nn.Sequential()
        while first > width:
            pyramid, half = self.inverse_pyramid, first // 2
            pyramid.add_module(f"pyramid-{first}-{half}-convt", nn.ConvTranspose2d(first, half, 4, 2, 1, bias=False))
            pyramid.add_module(f"pyramid-{half}-batchnorm", nn.BatchNorm2d(half))
            pyramid.add_module(f"pyramid-{half}-relu", nn.ReLU())
            first = half
        self.extra_layers = anomalib_extra_layers(width, extra_layers)
        self.final_layers = nn.Sequential()
        last = nn.ConvTranspose2d(width, channels, 4, 2, 1, bias=False)
        self.final_layers.add_module(f"final-{width}-{channels}-convt", last)
        self.final_layers.add_module(f"final-{channels}-tanh", nn.Tanh())

    def forward(self, z):
        return self.final_layers(self.extra_layers(self.inverse_pyramid(self.latent_input(z))))


def anomalib_extra_layers(width, number):
    layers = nn.Sequential()
    for layer in range(number):
        layers.add_module(f"extra-layers-{layer}-{width}-conv", nn.Conv2d(width, width, 3, 1, 1, bias=False))
        layers.add_module(f"extra-layers-{layer}-{width}-batchnorm", nn.BatchNorm2d(width))
        layers.add_module(f"extra-layers-{layer}-{width}-relu", nn.LeakyReLU(0.2))
    return layers


class AnomalibGenerator(nn.Module):
    """anomalib's generator; ``score`` is what its model returns in evaluation mode."""

    def __init__(self, size=256, nz=100, channels=3, width=64, extra_layers=0):
        super().__init__()
        self.encoder1 = AnomalibEncoder(size, nz, channels, width, extra_layers)
        self.decoder = AnomalibDecoder(size, nz, channels, width, extra_layers)
        self.encoder2 = AnomalibEncoder(size, nz, channels, width, extra_layers)

    def forward(self, x):
        latent_i = self.encoder1(x)
        image = self.decoder(latent_i)
        return image, latent_i, self.encoder2(image)

    def score(self, pixels, mean=IMAGENET_MEAN, std=IMAGENET_STD):
        """Scores (N,) of uint8 images (N, C, S, S); sizes that are not powers of two are padded with zeros."""
        self.eval()
        size = 1 << (max(pixels.shape[-2:]) - 1).bit_length()
        missing = size - pixels.shape[-1]
        with torch.no_grad():
            padded = pad(normalized(pixels, mean, std), [missing - missing // 2, missing // 2] * 2)
            _, latent_i, latent_o = self(padded)
            return torch.mean(torch.pow(latent_i - latent_o, 2), dim=1).view(-1)


def normalized(pixels, mean, std):
    mean, std = (torch.tensor(values)[:, None, None] for values in (mean, std))
    return (pixels.float() / 255 - mean) / std


def random_weights(network, seed=0):
    """Weights of a plausible scale, and norms that differ from their initial values; returns the network."""
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            fan_in = module.weight[0].numel()
            module.weight.data = torch.randn(module.weight.shape, generator=generator) * (1.5 / fan_in) ** 0.5
        elif isinstance(module, nn.BatchNorm2d):
            size = module.num_features
            module.weight.data = 1 + 0.2 * torch.randn(size, generator=generator)
            module.bias.data = 0.2 * torch.randn(size, generator=generator)
            module.running_mean = 0.2 * torch.randn(size, generator=generator)
            module.running_var = 0.5 + torch.rand(size, generator=generator)
            module.num_batches_tracked += 7
    return network


def with_discriminator(generator, discriminator):
    """Both state dicts under the names that they have in anomalib's Lightning checkpoint."""
    parts = {"generator": generator, "discriminator": discriminator}
    return {
        f"model.{kind}.{name}": tensor for kind, part in parts.items() for name, tensor in part.state_dict().items()
    }
