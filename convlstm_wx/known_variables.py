"""The meteorological variables that we recognise: names, standard names, units, plausible ranges and colours."""

from dataclasses import dataclass


@dataclass(frozen=True)
class KnownVariable:
    """A meteorological variable that we recognise.

    Attributes:
        name: short name (ECMWF's where there is one).
        long_name: for titles.
        units: the units of valid_min and valid_max; files may use others.
        valid_min, valid_max: values outside are not plausible anywhere on earth, from the surface to 1 hPa.
        aliases: other names in files, lower case.
        standard_names: CF standard names.
        transform: "log1p_mm" for precipitation, else "none".
        colormap, error_colormap: matplotlib's, for the field and for differences.
        non_negative: values below zero cannot be.
        static: never changes; a file that repeats it at every time holds one field.
        circular: an angle: 359 and 1 degrees are neighbours.
    """

    name: str
    long_name: str
    units: str
    valid_min: float
    valid_max: float
    aliases: tuple[str, ...] = ()
    standard_names: tuple[str, ...] = ()
    transform: str = "none"
    colormap: str = "viridis"
    error_colormap: str = "RdBu_r"
    non_negative: bool = False
    static: bool = False
    circular: bool = False


_WARM_COLD = "RdYlBu_r"
_TWO_SIDED = "PuOr_r"

# Order matters where two share a name: the first whose units fit the file's is taken.
KNOWN_VARIABLES: tuple[KnownVariable, ...] = (
    KnownVariable(
        "t", "temperature", "K", 150, 350,
        ("ta", "temp", "temperature", "air", "tmp", "air_temperature"), ("air_temperature",), colormap=_WARM_COLD,
    ),
    KnownVariable(
        "t2m", "2 m temperature", "K", 170, 340,
        ("2t", "2m_temperature", "t2", "tas", "t_2m", "temp2", "tmp2m", "tg", "tmean", "tavg"),
        ("air_temperature",), colormap=_WARM_COLD,
    ),
    KnownVariable(
        "tmax", "daily maximum temperature", "K", 170, 340,
        ("tasmax", "mx2t", "tx", "t2mmax", "tmp_max", "maximum_2m_temperature"), ("air_temperature",),
        colormap=_WARM_COLD,
    ),
    KnownVariable(
        "tmin", "daily minimum temperature", "K", 170, 340,
        ("tasmin", "mn2t", "tn", "t2mmin", "tmp_min", "minimum_2m_temperature"), ("air_temperature",),
        colormap=_WARM_COLD,
    ),
    KnownVariable(
        "dpt", "dewpoint temperature", "K", 100, 330,
        ("dew_point_temperature", "dewpoint_temperature", "dewpoint"), ("dew_point_temperature",),
        colormap=_WARM_COLD,
    ),
    KnownVariable(
        "d2m", "2 m dewpoint temperature", "K", 150, 320,
        ("2d", "2m_dewpoint_temperature", "td2m", "tdps", "dew2m", "t2mdew"), ("dew_point_temperature",),
        colormap=_WARM_COLD,
    ),
    KnownVariable(
        "sst", "sea surface temperature", "K", 265, 315,
        ("sea_surface_temperature", "tos"), ("sea_surface_temperature",), colormap=_WARM_COLD,
    ),
    KnownVariable(
        "skt", "skin temperature", "K", 150, 370,
        ("skin_temperature", "ts", "tskin"), ("surface_temperature",), colormap=_WARM_COLD,
    ),
    KnownVariable(
        "msl", "mean sea level pressure", "Pa", 85_000, 110_000,
        ("slp", "psl", "mslp", "mean_sea_level_pressure", "prmsl", "pmsl", "mslet"),
        ("air_pressure_at_mean_sea_level", "air_pressure_at_sea_level"),
    ),
    KnownVariable(
        "sp", "surface pressure", "Pa", 40_000, 110_000,
        ("surface_pressure", "ps", "psfc", "pres", "pressfc"), ("surface_air_pressure",),
    ),
    KnownVariable(
        "z", "geopotential", "m2 s-2", -10_000, 500_000, ("geopotential", "phi"), ("geopotential",)
    ),
    KnownVariable(
        "gh", "geopotential height", "m", -1_000, 51_000,
        ("geopotential_height", "hgt", "zg", "z", "h", "height"), ("geopotential_height", "geopotential"),
    ),
    KnownVariable(
        "u", "eastward wind", "m s-1", -200, 200,
        ("ua", "uwnd", "u_component_of_wind", "ugrd", "eastward_wind"), ("eastward_wind",), colormap=_TWO_SIDED,
    ),
    KnownVariable(
        "v", "northward wind", "m s-1", -200, 200,
        ("va", "vwnd", "v_component_of_wind", "vgrd", "northward_wind"), ("northward_wind",), colormap=_TWO_SIDED,
    ),
    KnownVariable(
        "u10", "10 m eastward wind", "m s-1", -100, 100,
        ("10u", "10m_u_component_of_wind", "u10m", "uas", "u_10m"), ("eastward_wind",), colormap=_TWO_SIDED,
    ),
    KnownVariable(
        "v10", "10 m northward wind", "m s-1", -100, 100,
        ("10v", "10m_v_component_of_wind", "v10m", "vas", "v_10m"), ("northward_wind",), colormap=_TWO_SIDED,
    ),
    KnownVariable(
        "ws", "wind speed", "m s-1", 0, 200,
        ("wspd", "si10", "sfcwind", "wind_speed", "10m_wind_speed"), ("wind_speed",), non_negative=True,
    ),
    KnownVariable(
        "gust", "wind gust", "m s-1", 0, 150,
        ("fg10", "10fg", "wind_gust", "10m_wind_gust_since_previous_post_processing"), ("wind_speed_of_gust",),
        non_negative=True,
    ),
    KnownVariable(
        "wdir", "wind direction", "degrees", -180, 360,
        ("wind_direction", "wind_from_direction", "10m_wind_direction"),
        ("wind_from_direction", "wind_to_direction"), colormap="twilight", circular=True,
    ),
    KnownVariable(
        "direction", "direction", "degrees", -180, 360, ("mwd", "mean_wave_direction"),
        ("sea_surface_wave_from_direction", "sea_surface_wave_to_direction", "sea_water_to_direction"),
        colormap="twilight", circular=True,
    ),
    KnownVariable(
        "w", "vertical velocity", "Pa s-1", -100, 100,
        ("omega", "wap", "vertical_velocity"), ("lagrangian_tendency_of_air_pressure",), colormap=_TWO_SIDED,
    ),
    KnownVariable(
        "vo", "relative vorticity", "s-1", -0.05, 0.05,
        ("vorticity", "relative_vorticity"), ("atmosphere_relative_vorticity",), colormap=_TWO_SIDED,
    ),
    KnownVariable(
        "q", "specific humidity", "kg kg-1", 0, 0.1,
        ("shum", "hus", "qv", "specific_humidity", "q2m", "qv2m", "huss"), ("specific_humidity",),
        colormap="YlGnBu", non_negative=True,
    ),
    KnownVariable(
        "r", "relative humidity", "%", 0, 180,
        ("rh", "rhum", "hur", "relative_humidity", "hurs", "rh2m"), ("relative_humidity",),
        colormap="YlGnBu", non_negative=True,
    ),
    KnownVariable(
        "tcwv", "total column water vapour", "kg m-2", 0, 150,
        ("tcw", "pwat", "prw", "total_column_water_vapour", "pr_wtr", "tqv"),
        ("atmosphere_mass_content_of_water_vapor", "lwe_thickness_of_atmosphere_mass_content_of_water_vapor"),
        colormap="YlGnBu", non_negative=True,
    ),
    KnownVariable(
        "tcc", "total cloud cover", "1", 0, 1,
        ("clt", "total_cloud_cover", "tcdc", "cloud"), ("cloud_area_fraction",), colormap="Greys_r", non_negative=True,
    ),
    KnownVariable(
        "lcc", "low cloud cover", "1", 0, 1,
        ("low_cloud_cover", "cll"), ("low_type_cloud_area_fraction",), colormap="Greys_r", non_negative=True,
    ),
    KnownVariable(
        "mcc", "medium cloud cover", "1", 0, 1,
        ("medium_cloud_cover", "clm"), ("medium_type_cloud_area_fraction",), colormap="Greys_r", non_negative=True,
    ),
    KnownVariable(
        "hcc", "high cloud cover", "1", 0, 1,
        ("high_cloud_cover", "clh"), ("high_type_cloud_area_fraction",), colormap="Greys_r", non_negative=True,
    ),
    KnownVariable(
        "vis", "visibility", "m", 0, 200_000, ("visibility",), ("visibility_in_air",), non_negative=True
    ),
    KnownVariable(
        "tp", "total precipitation", "mm", 0, 2_000,
        (
            "total_precipitation", "precip", "precipitation", "rain", "rainfall", "rf", "rr", "pr", "pre", "prcp",
            "apcp", "total_precipitation_6hr", "total_precipitation_24hr", "rainnc", "prectot", "ppt", "pcp",
        ),
        ("precipitation_amount", "lwe_thickness_of_precipitation_amount", "rainfall_amount",
         "thickness_of_rainfall_amount"),
        transform="log1p_mm", colormap="YlGnBu", error_colormap="BrBG", non_negative=True,
    ),
    KnownVariable(
        "prate", "precipitation rate", "mm d-1", 0, 10_000,
        (
            "pr", "precip", "precipitation", "mtpr", "avg_tprate", "tprate", "prectot", "prectotcorr", "rain",
            "rainfall", "mean_total_precipitation_rate", "tp",
        ),
        ("precipitation_flux", "lwe_precipitation_rate", "rainfall_flux", "rainfall_rate"),
        transform="log1p_mm", colormap="YlGnBu", error_colormap="BrBG", non_negative=True,
    ),
    KnownVariable(
        "cp", "convective precipitation", "mm", 0, 2_000,
        ("convective_precipitation", "acpcp", "rainc"),
        ("convective_precipitation_amount", "lwe_thickness_of_convective_precipitation_amount",
         "convective_rainfall_amount"),
        transform="log1p_mm", colormap="YlGnBu", error_colormap="BrBG", non_negative=True,
    ),
    KnownVariable(
        "lsp", "large-scale precipitation", "mm", 0, 2_000,
        ("large_scale_precipitation", "ncpcp"),
        ("stratiform_precipitation_amount", "lwe_thickness_of_stratiform_precipitation_amount",
         "stratiform_rainfall_amount"),
        transform="log1p_mm", colormap="YlGnBu", error_colormap="BrBG", non_negative=True,
    ),
    KnownVariable(
        "cprate", "convective precipitation rate", "mm d-1", 0, 10_000,
        ("cprat", "prc", "convective_precipitation"),
        ("convective_precipitation_flux", "lwe_convective_precipitation_rate", "convective_rainfall_flux"),
        transform="log1p_mm", colormap="YlGnBu", error_colormap="BrBG", non_negative=True,
    ),
    KnownVariable(
        "lsprate", "large-scale precipitation rate", "mm d-1", 0, 10_000,
        ("large_scale_precipitation",), ("stratiform_precipitation_flux", "lwe_stratiform_precipitation_rate"),
        transform="log1p_mm", colormap="YlGnBu", error_colormap="BrBG", non_negative=True,
    ),
    KnownVariable(
        "prsn", "snowfall rate", "mm d-1", 0, 5_000,
        ("snowfall",), ("snowfall_flux", "lwe_snowfall_rate"),
        transform="log1p_mm", colormap="YlGnBu", error_colormap="BrBG", non_negative=True,
    ),
    KnownVariable(
        "sf", "snowfall", "mm", 0, 1_000,
        ("snowfall",), ("snowfall_amount", "lwe_thickness_of_snowfall_amount"),
        transform="log1p_mm", colormap="YlGnBu", error_colormap="BrBG", non_negative=True,
    ),
    KnownVariable(
        "sd", "snow depth", "m", 0, 50,
        ("snow_depth", "snod", "snd"), ("surface_snow_thickness", "lwe_thickness_of_surface_snow_amount"),
        colormap="Blues", non_negative=True,
    ),
    KnownVariable(
        "rsds", "downward solar radiation", "W m-2", 0, 1_600,
        ("dswrf", "swdown", "avg_sdswrf", "msdwswrf"), ("surface_downwelling_shortwave_flux_in_air",),
        colormap="magma", non_negative=True,
    ),
    KnownVariable(
        "ssrd", "downward solar radiation, accumulated", "J m-2", 0, 1.4e8,
        ("surface_solar_radiation_downwards",),
        ("surface_downwelling_shortwave_flux_in_air", "integral_wrt_time_of_surface_downwelling_shortwave_flux_in_air"),
        colormap="magma", non_negative=True,
    ),
    KnownVariable(
        "rss", "net solar radiation", "W m-2", 0, 1_600, (), ("surface_net_downward_shortwave_flux",),
        colormap="magma", non_negative=True,
    ),
    KnownVariable(
        "rls", "net thermal radiation", "W m-2", -600, 400, (), ("surface_net_downward_longwave_flux",),
    ),
    KnownVariable(
        "swvl", "volumetric soil moisture", "m3 m-3", 0, 1,
        ("soil_moisture", "soilw"), ("volume_fraction_of_condensed_water_in_soil",),
        colormap="YlGnBu", non_negative=True,
    ),
    KnownVariable(
        "siconc", "sea ice cover", "1", 0, 1,
        ("sea_ice_cover", "sea_ice_concentration", "sic", "ci", "icec", "ice_cover"), ("sea_ice_area_fraction",),
        colormap="Blues_r", non_negative=True,
    ),
    KnownVariable(
        "lsm", "land-sea mask", "1", 0, 1,
        ("land_sea_mask", "sftlf", "land"), ("land_binary_mask", "land_area_fraction"),
        colormap="Greys_r", non_negative=True, static=True,
    ),
    KnownVariable(
        "orog", "surface altitude", "m", -500, 9_000,
        ("orography", "topo", "elevation", "hgt_surface"), ("surface_altitude",), colormap="terrain", static=True,
    ),
    KnownVariable(
        "zs", "surface geopotential", "m2 s-2", -5_000, 90_000,
        ("geopotential_at_surface", "surface_geopotential", "phis"), ("surface_geopotential",), colormap="terrain",
        static=True,
    ),
)  # fmt: skip
